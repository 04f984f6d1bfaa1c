"""Completion by real shells. Those that are not installed are skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

#: Each sources the completion script in the file $SCRIPT, and completes `helixq jobs li`.
COMPLETES = {
    "bash": """
        source "$SCRIPT"
        COMP_WORDS=(helixq jobs li) COMP_CWORD=2 COMP_LINE="helixq jobs li" COMP_POINT=14
        _helixq_completion helixq && echo "${COMPREPLY[@]}"
    """,
    "zsh": """
        # Both work within the line editor alone.
        compdef() { }
        _describe() { local name=$3; print -l -- ${${(P)name}%%:*} }
        source "$SCRIPT"
        words=(helixq jobs li) CURRENT=3
        _helixq_completion
    """,
    "fish": """
        source "$SCRIPT"
        complete --do-complete "helixq jobs li"
    """,
}


@pytest.mark.parametrize("shell", COMPLETES)
def test_a_shell_completes_a_command(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    program = tmp_path / "helixq"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m cli "$@"\n')
    program.chmod(0o755)
    environ = {
        **os.environ,
        "HOME": str(tmp_path),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SCRIPT": str(tmp_path / "script"),
    }

    def run(*command: str) -> str:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    (tmp_path / "script").write_text(run("helixq", "completion", shell))
    assert "list" in run(shell, "-c", COMPLETES[shell]).split()
