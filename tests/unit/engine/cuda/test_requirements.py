"""A CUDA device that cannot run the kernels is refused at once. The devices are fakes."""

from __future__ import annotations

import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from worker.engine.cuda import requirements
from worker.engine.cuda.requirements import DeviceError

DEVICE = torch.device("cuda:0")


@pytest.fixture(autouse=True)
def equipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with Triton, a compiler and Python's headers."""
    monkeypatch.setattr(requirements, "find_spec", lambda _: find_spec("torch"))
    monkeypatch.delenv("CC", raising=False)
    install(monkeypatch, "gcc")
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(tmp_path))


def install(monkeypatch: pytest.MonkeyPatch, *programs: str) -> None:
    """Make these the machine's only programs."""
    monkeypatch.setattr(shutil, "which", lambda name: name if name in programs else None)


def give(monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int]) -> None:
    """Give the machine a device."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("NVIDIA A100", (8, 0)),
        ("NVIDIA GeForce RTX 4090", (8, 9)),
        ("NVIDIA H100", (9, 0)),
        ("NVIDIA B200", (10, 0)),
    ],
)
def test_devices_that_are_used(
    name: str, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, name, capability)
    requirements.check(DEVICE)


@pytest.mark.parametrize(
    ("name", "capability"),
    [("Tesla P100", (6, 0)), ("Tesla V100", (7, 0)), ("Tesla T4", (7, 5))],
)
def test_a_device_too_old_for_the_kernels(
    name: str, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, name, capability)
    has = f"{capability[0]}.{capability[1]}"
    message = (
        rf"^the {name} has compute capability {has}, .* need 8\.0; use HELIXQ_ENGINE=reference"
    )
    with pytest.raises(DeviceError, match=message):
        requirements.check(DEVICE)


@pytest.mark.parametrize("programs", [(), ("cc",)])
def test_a_machine_without_a_compiler(
    programs: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton does not look for `cc`."""
    install(monkeypatch, *programs)
    with pytest.raises(DeviceError, match=r"needs a C compiler, .* launchers: install gcc"):
        requirements.check(DEVICE)


def test_a_compiler_named_in_cc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton uses it, and no other."""
    give(monkeypatch, "NVIDIA L4", (8, 9))
    install(monkeypatch, "gcc", "/opt/cc")
    monkeypatch.setenv("CC", "/opt/cc")
    requirements.check(DEVICE)
    monkeypatch.setenv("CC", "icc")
    with pytest.raises(DeviceError, match="there is no 'icc', which CC names"):
        requirements.check(DEVICE)


def test_headers_of_debians_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its default scheme names a folder for packages of its users, which has no headers."""
    give(monkeypatch, "NVIDIA L4", (8, 9))
    folders = {"posix_local": tmp_path / "local", "posix_prefix": tmp_path}
    monkeypatch.setattr(sysconfig, "get_default_scheme", lambda: "posix_local")
    monkeypatch.setattr(sysconfig, "get_path", lambda _, scheme="posix_local": str(folders[scheme]))
    requirements.check(DEVICE)
    (tmp_path / "Python.h").unlink()
    with pytest.raises(DeviceError, match=r"there is no .*Python\.h: install python3-dev"):
        requirements.check(DEVICE)
