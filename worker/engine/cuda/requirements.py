"""Checks what a machine needs to compile and run the kernels."""

from __future__ import annotations

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import torch

from worker.engine.interface import EngineError

#: Minimum compute capability that Triton supports. For older devices it compiles products without tensor cores: the
#: attention of a prefill then takes 13 KB of local memory a thread, and most of a multiprocessor's shared memory.
MIN_CAPABILITY = (8, 0)


class DeviceError(EngineError):
    """A device cannot be used; the message says what to do."""


def check(device: torch.device) -> None:
    """Check that Triton can compile kernels for a CUDA device.

    Triton builds kernel launchers with the machine's C compiler and Python's headers.

    Raises:
        DeviceError: something is missing, or the device is too old.
    """
    if find_spec("triton") is None:
        raise DeviceError("a CUDA device needs Triton: pip install triton")
    compiler = os.environ.get("CC")
    compilers = ("gcc", "clang") if compiler is None else (compiler,)
    if not any(map(shutil.which, compilers)):
        named = "" if compiler is None else f", and there is no {compiler!r}, which CC names"
        raise DeviceError(
            f"a CUDA device needs a C compiler, with which Triton builds its kernels' launchers{named}: "
            "install gcc and libc6-dev, or name one in CC"
        )
    # Debian's own Python says that headers are below /usr/local. Triton looks where they are.
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    headers = Path(sysconfig.get_path("include", scheme)) / "Python.h"
    if not headers.is_file():
        raise DeviceError(
            f"a CUDA device needs Python's headers, with which Triton builds its kernels' launchers, "
            f"and there is no {headers}: install python3-dev"
        )
    capability, name = torch.cuda.get_device_capability(device), torch.cuda.get_device_name(device)
    if capability < MIN_CAPABILITY:
        raise DeviceError(
            f"the {name} has compute capability {_dotted(capability)}, and the engine's kernels need "
            f"{_dotted(MIN_CAPABILITY)}; use HELIXQ_ENGINE=reference, which runs one request at a time, or "
            "HELIXQ_DEVICE=cpu"
        )


def _dotted(capability: tuple[int, int]) -> str:
    major, minor = capability
    return f"{major}.{minor}"
