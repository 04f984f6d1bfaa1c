"""The kernels match the same operations in PyTorch, and compile as intended for a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fork_client, forked

#: It forgets what the process that is forked has imported with kernels: Triton decides at import whether it
#: interprets. Its compiled part is the same either way, and can be imported only once.
RUN = """
import sys
for name in [*sys.modules]:
    if name.partition(".")[0] in {"triton", "tests", "worker"} and not name.startswith("triton._C"):
        del sys.modules[name]
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["interpreted", "compiled"])
def test_kernels(way: str) -> None:
    """In a process of its own, which also keeps the fake driver from other tests."""
    pytest.importorskip("triton")
    forked.server()
    tests = Path(__file__).with_name(f"kernels_{way}.py")
    command = [*(sys.executable, "-IS", fork_client.__file__, "-c"), RUN]
    arguments = ["--noconftest", "-qq", "-p", "no:cacheprovider", str(tests)]
    environment = os.environ | {"TRITON_INTERPRET": str(int(way == "interpreted"))}
    ended = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
