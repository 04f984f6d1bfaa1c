"""Measures how long a GPU waits for the host: ``python -m worker.bench.host``.

It runs whole jobs on an engine with a simulated device (`worker.bench.simulated`), and prints a line of JSON
for each measurement.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from jobs.pipeline import Role, Sampling
from worker.bench import simulated
from worker.bench.engine import run_jobs
from worker.bench.models import questions
from worker.bench.simulated import SimulatedRunner, Speed
from worker.engine.batching.engine import BatchingEngine

#: Tokens of the context, as on a large GPU.
CONTEXT = 4096
#: Warm-up jobs, which are not counted.
WARM_UP = 4


def make_engine(
    tokenizer: PreTrainedTokenizerBase,
    max_num_seqs: int,
    speed: Speed,
    *,
    max_model_len: int = CONTEXT,
) -> tuple[BatchingEngine, SimulatedRunner]:
    """Start an engine on a simulated device."""
    built = simulated.build(
        tokenizer,
        max_num_seqs=max_num_seqs,
        max_model_len=max_model_len,
        num_adapters=len(Role),
        speed=speed,
    )
    engine = BatchingEngine(
        built,
        tokenizer,
        adapter_names=[role.value for role in Role],
        stop_token_ids=frozenset(),
        max_model_len=max_model_len,
    )
    runner = built.runner
    assert isinstance(runner, SimulatedRunner)  # noqa: S101 (it was asked for)
    return engine, runner


def measure(
    tokenizer: PreTrainedTokenizerBase,
    *,
    at_once: int,
    rounds: int,
    new: int,
    question: int,
    speed: Speed,
) -> dict[str, Any]:
    """Run jobs, and measure how busy the device is.

    Args:
        tokenizer: encodes and decodes texts.
        at_once: number of jobs that run at the same time.
        rounds: total number of jobs, as a multiple of ``at_once``.
        new: new tokens of every stage.
        question: tokens of a question.
        speed: the times of the device's steps.
    """
    texts = questions(tokenizer, at_once * rounds, question, seed=0)
    sampling = Sampling(max_output_tokens=new)
    engine, runner = make_engine(tokenizer, at_once, speed)
    with closing(engine):
        warm = Sampling(max_output_tokens=8)
        run_jobs(engine, texts[:WARM_UP], at_once=min(WARM_UP, at_once), sampling=warm)
        runner.restart()
        cpu = time.process_time()
        result = run_jobs(engine, texts, at_once=at_once, sampling=sampling)
        cpu = time.process_time() - cpu
    timeline = runner.restart()
    return {
        "device": "simulated",
        "faster": speed.faster,
        "at_once": at_once,
        "jobs": len(texts),
        "new": new,
        "seconds": round(result.seconds, 3),
        "device_seconds": round(timeline.busy, 3),
        "busy": round(timeline.busy / result.seconds, 4),
        "steps": timeline.steps,
        "without_graph": timeline.without_graph,
        "waits": len(timeline.waits),
        "waited": round(sum(timeline.waits), 3),
        "longest_waits": [round(w, 4) for w in sorted(timeline.waits, reverse=True)[:6]],
        "prompt_tokens": result.prompt_tokens,
        "first_token": round(result.first_token, 3),
        "cpu_seconds": round(cpu, 3),
    }


def _measured(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    tokenizer: Any = (
        AutoTokenizer.from_pretrained(options.tokenizer)
        if options.tokenizer
        else simulated.tokenizer_of(options.vocabulary)
    )
    for at_once in options.at_once:
        yield measure(
            tokenizer,
            at_once=at_once,
            rounds=options.rounds,
            new=options.new,
            question=options.question,
            speed=Speed(faster=options.faster),
        )


def main() -> int:
    """Print a line for each number of jobs at once."""
    parser = argparse.ArgumentParser(prog="python -m worker.bench.host", description=__doc__)
    parser.add_argument("--at-once", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rounds", type=int, default=1, help="jobs, as a multiple of --at-once")
    parser.add_argument("--new", type=int, default=256, help="tokens of every stage")
    parser.add_argument("--question", type=int, default=64, help="tokens of a question")
    parser.add_argument("--faster", type=float, default=1, help="how much faster the device is")
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument(
        "--tokenizer", type=Path, help="a folder with one, instead of a made-up one"
    )
    for line in _measured(parser.parse_args()):
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
