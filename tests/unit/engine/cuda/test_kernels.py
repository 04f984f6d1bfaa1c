"""The kernels match the same operations in PyTorch, and compile as intended for a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["interpreted", "compiled"])
def test_kernels(way: str) -> None:
    """In a process of its own, since Triton decides at import whether it interprets."""
    pytest.importorskip("triton")
    tests = Path(__file__).with_name(f"kernels_{way}.py")
    command = [sys.executable, "-m", "pytest", "--noconftest", "-qq", "-p", "no:cacheprovider"]
    environment = os.environ | {"TRITON_INTERPRET": str(int(way == "interpreted"))}
    ended = subprocess.run([*command, tests], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
