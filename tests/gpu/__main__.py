"""``python -m tests.gpu``: checks texts in float32, then measures speeds, then checks other dtypes."""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import peft
import torch
import transformers

from tests.gpu import speed, texts
from tests.gpu.report import Report
from tests.gpu.speed import Speed
from tests.gpu.tables import tables
from tests.gpu.texts import Checked
from worker.engine.cuda import requirements
from worker.engine.cuda.requirements import DeviceError

#: Seconds after the budget at which a process that hangs is ended, with a traceback.
GRACE = 20

#: Name, minimum seconds, and function.
Section = tuple[str, float, Callable[[Report], None]]


def main() -> int:
    """Run the chosen sections; return 1 if a check fails, else 0."""
    options = _options()
    try:
        device = _device(options.device)
    except DeviceError as error:
        print(f"{error}; --tiny --device cpu runs all of it in small", file=sys.stderr)
        return 2
    faulthandler.dump_traceback_later(options.budget + GRACE, exit=True)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types there
    out = os.environ.get("OUT")
    report = Report(options.budget, Path(out) / "gpu.jsonl" if out else None)
    report.say(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        torch=torch.__version__,
        transformers=transformers.__version__,
        peft=peft.__version__,
        budget=options.budget,
    )
    sections = _sections(report, options, device)
    names = [name for name, *_ in sections]
    if unknown := set(options.only) - set(names):
        print(f"there is no section {min(unknown)}: {', '.join(names)}", file=sys.stderr)
        return 2
    for name, need, run in sections:
        if not options.only or name in options.only:
            report.section(name, 0 if options.tiny else need, run)
    print(f"\n{tables(report.lines)}")
    faulthandler.cancel_dump_traceback_later()
    return int(report.failed)


def _device(name: str) -> torch.device:
    """Return the device of a name.

    Raises:
        DeviceError: there is none, or the engine's kernels cannot be compiled for it. Every section would fail for that
            reason, and later.
    """
    device = torch.device(name)
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise DeviceError("PyTorch sees no CUDA device")
    if device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())  # some functions need the index
    requirements.check(device)
    return device


def _sections(report: Report, options: argparse.Namespace, device: torch.device) -> list[Section]:
    """Return all sections, the most important first, but for those that share an engine."""
    amount = texts.Amount(
        questions=options.questions, limit=128, reference=options.questions * 3 / 8
    )
    measured, dtype = speed.FULL, torch.bfloat16
    if options.tiny:
        amount = texts.Amount(questions=2, limit=12, reference=1, slots=8)
        measured, dtype = speed.TINY, torch.float32
    exact, brain, half = (
        Checked(report, amount, dtype, device)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    )
    windowed = Checked(report, amount, torch.float32, device, sliding_window=texts.WINDOW)
    at_speed = Speed(measured, dtype, device)
    return [
        ("float32", 20, lambda _: exact.run()),
        ("cancel", 5, lambda _: exact.cancel()),
        ("window", 10, lambda _: windowed.run_briefly()),
        ("limit", 15, at_speed.limit),
        ("card", 8, at_speed.card),
        ("start", 15, at_speed.start),
        ("decode", 20, at_speed.decode),
        ("jobs", 25, at_speed.jobs),
        ("prompts", 8, at_speed.prompts),
        ("bare", 15, at_speed.bare),
        ("four_bit", 25, at_speed.four_bit),
        ("float16", 20, lambda _: half.run()),
        ("memory", 15, at_speed.memory),
        ("bfloat16", 20, lambda _: brain.run()),
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--budget", type=float, default=240, help="seconds; what does not fit is skipped"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="sections to run")
    parser.add_argument("--questions", type=int, default=32, help="whose texts are compared")
    parser.add_argument("--tiny", action="store_true", help="all of it in small, to see it run")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
