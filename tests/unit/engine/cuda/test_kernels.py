"""The kernels of a step give what the same in plain PyTorch gives, and compile for a GPU as they should."""

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
    """In a process of its own: Triton decides to interpret when it is imported."""
    pytest.importorskip("triton")
    tests = Path(__file__).with_name(f"kernels_{way}.py")
    command = [sys.executable, "-m", "pytest", "--noconftest", "-qq", "-p", "no:cacheprovider"]
    environment = os.environ | {"TRITON_INTERPRET": str(int(way == "interpreted"))}
    ended = subprocess.run([*command, tests], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
