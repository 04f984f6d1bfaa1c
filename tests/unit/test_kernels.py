"""The kernels of a step give what the same in plain PyTorch gives, as Triton interprets them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_kernels_as_triton_interprets_them() -> None:
    """In a process of its own: Triton decides to interpret when it is imported."""
    pytest.importorskip("triton")
    tests = Path(__file__).with_name("kernels_interpreted.py")
    command = [sys.executable, "-m", "pytest", "--noconftest", "-qq", "-p", "no:cacheprovider"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    ended = subprocess.run([*command, tests], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
