"""The check for a GPU machine on a CPU, in small: it needs torch, transformers and peft only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import fork_client, forked
from tests.gpu import __main__ as gpu_check
from tests.gpu import engines, speed
from tests.gpu.report import Report
from worker.engine.cuda import requirements
from worker.engine.cuda.requirements import DeviceError

ROOT = Path(__file__).parents[2]
#: Packages that are missing on a GPU machine.
MISSING = {
    "alembic",
    "celery",
    "click",
    "flask",
    "hypothesis",
    "pydantic",
    "pytest",
    "redis",
    "sqlalchemy",
}
#: Our packages, any of which may import those.
OURS = {"cli", "demo", "jobs", "migrations", "tests", "web", "worker"}
#: It forgets what the process that is forked has imported of both. The import of what is missing fails.
RUN = f"""
import runpy, sys
for name in [*sys.modules, *{MISSING}]:
    package = name.partition(".")[0]
    if package in {MISSING}:
        sys.modules[name] = None
    elif package in {OURS}:
        del sys.modules[name]
runpy.run_module("tests.gpu", run_name="__main__", alter_sys=True)
"""


def test_the_gpu_check_runs_on_a_cpu(tmp_path: Path) -> None:
    only = [
        "float32",
        "cancel",
        "window",
        "limit",
        "card",
        "start",
        "decode",
        "jobs",
        "prompts",
        "bare",
    ]
    forked.server()
    command = [
        *(sys.executable, "-IS", fork_client.__file__, "-c"),
        RUN,
        "--tiny",
        "--device",
        "cpu",
        "--only",
        *only,
        "four_bit",
        "memory",
    ]
    environment = {**os.environ, "OUT": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    recorded = (tmp_path / "gpu.jsonl").read_text(encoding="utf-8").splitlines()
    assert ended.stdout.splitlines()[: len(recorded)] == recorded
    lines: list[dict[str, Any]] = [json.loads(line) for line in recorded]
    assert [line for line in lines if "error" in line] == []
    texts = [line for line in lines if line.get("check") == "texts" and "skipped" not in line]
    assert {line["drawn"] for line in texts} == {"greedy", "sampled"}
    assert {"alone", "without graphs", "PEFT's generate"} <= {line["variant"] for line in texts}
    assert {line["window"] for line in texts} == {None, 45}
    assert all(line["equal"] == line["texts"] > 0 for line in texts)
    [cancel] = [line for line in lines if line.get("check") == "cancel"]
    assert cancel["cancelled"] > 0
    assert cancel["steps_after"] <= 1
    measured = [line["measure"] for line in lines if "measure" in line]
    twice = ["decode"] * 2 + ["jobs"] * 2 + ["prompts"] * 2
    assert measured == ["limit", "card", "start", *twice, "decode", *["four_bit"] * 2, "memory"]
    for line in lines:
        assert line.get("tokens_a_second", 1) > 0
    assert "| sequences at once |" in ended.stdout


def test_a_section_fails_alone_or_is_skipped_when_time_is_short(tmp_path: Path) -> None:
    report = Report(60, tmp_path / "lines")

    def fails(_: Report) -> None:
        raise ValueError("broken")

    report.section("one", 30, fails)
    report.section("two", 30, lambda report: report.say(found=2))
    report.section("three", 90, fails)
    first, _, second, _, third = report.lines
    assert first["error"].endswith("ValueError: broken\n")
    assert second["found"] == 2
    assert third["skipped"].endswith("it takes 90")
    assert report.failed


def test_an_engine_that_cannot_be_made_is_tried_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a machine that is lent for minutes, each try would take half of one."""
    tries: list[int | None] = []

    def fails(*_: Any, max_num_seqs: int, **__: Any) -> None:
        tries.append(max_num_seqs)
        raise ValueError("too little memory")

    monkeypatch.setattr(engines, "make", fails)
    measured = speed.Speed(speed.TINY, torch.float32, torch.device("cpu"))
    report = Report(60, tmp_path / "lines")
    for section in (measured.start, measured.decode, measured.jobs, measured.prompts):
        report.section(section.__name__, 0, section)
    errors = [line["error"] for line in report.lines if "error" in line]
    assert len(errors) == 4
    assert all("too little memory" in error for error in errors)
    assert tries == [4]
    assert "in fails\n" in capsys.readouterr().err, "standard error has whole tracebacks"
    report.section("bare", 0, measured.bare)
    assert len(tries) == 2, "another engine may fit"


@pytest.mark.parametrize("lacks", ["a device", "a compiler"])
def test_the_gpu_check_needs_a_gpu(
    lacks: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Mistral-7B on a CPU would take hours, and without a compiler every section would fail."""

    def check(_: torch.device) -> None:
        raise DeviceError("a CUDA device needs a C compiler")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: lacks != "a device")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(requirements, "check", check)
    monkeypatch.setattr(sys, "argv", ["tests.gpu", "--only", "limit"])
    assert gpu_check.main() == 2
    printed = capsys.readouterr()
    assert not printed.out
    message = {"a device": "PyTorch sees no CUDA device", "a compiler": "needs a C compiler"}
    assert message[lacks] in printed.err
