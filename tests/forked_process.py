"""What a fork of `tests.fork_server` becomes: a Python program, as if it had been started."""

from __future__ import annotations

import atexit
import ctypes
import os
import runpy
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any, NoReturn


def become(request: dict[str, Any], files: Sequence[int], leave: Callable[[], None]) -> NoReturn:
    """Become the process that is asked for, and end as it does.

    Args:
        request: the arguments of `run`.
        files: the standard input, output and error.
        leave: closes what is the server's.
    """
    status = 1
    try:
        leave()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        run(**request)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 (what Python does with it)
        traceback.print_exc()
    finally:
        # As at the end of Python, but nothing is taken down piece by piece.
        threading._shutdown()  # type: ignore[attr-defined]  # not public
        atexit._run_exitfuncs()
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(status & 0xFF)


def run(
    arguments: Sequence[str], environ: dict[str, str], folder: str, namespaces: int | None
) -> None:
    """Run what Python would with these arguments.

    Args:
        arguments: ``-m module argument…``, or ``-c code argument…``; ``-u``, ``-B`` and ``-P`` before them
            mean nothing.
        environ: all environment variables.
        folder: the current one.
        namespaces: a process whose network and hostname this one gets; the server's if None.
    """
    os.setsid()
    if namespaces is not None:
        enter(namespaces)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    tempfile.tempdir = None  # It is where the new TMPDIR says.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it is a text file
    arguments = [*arguments]
    while (flag := arguments.pop(0)) in ("-u", "-B", "-P"):
        pass
    what, *rest = arguments
    if flag == "-m":
        sys.argv[1:] = rest
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        assert flag == "-c", flag
        sys.argv[:] = ["-c", *rest]
        module = sys.modules["__main__"] = ModuleType("__main__")
        exec(what, module.__dict__)  # noqa: S102 (our own)


def enter(process: int) -> None:
    """Go over to the network and the hostname of a process."""
    libc = ctypes.CDLL(None, use_errno=True)
    kinds = ["net", "uts"] if os.geteuid() == 0 else ["user", "net", "uts"]
    # All are opened first: in the user namespace, the others would be another's.
    files = [os.open(f"/proc/{process}/ns/{kind}", os.O_RDONLY) for kind in kinds]
    for file in files:
        if libc.setns(file, 0) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(file)
