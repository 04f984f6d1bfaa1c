"""Steps that were recorded once and are replayed say what steps that are laid out anew say.

There is no CUDA graph on a CPU. What stands for one here is PyTorch's tracer: like a graph it repeats
the operations that it saw, with the tensors that it saw, and knows nothing of the code around them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from jobs.pipeline import Role, Sampling
from tests.conftest import load_models
from tests.integration.batches import CONTEXT, WORDS, request, same, together
from tests.integration.test_batching import mixed
from worker.engine import recorded
from worker.engine.adapters import StackedLinear
from worker.engine.batching import BatchingEngine
from worker.engine.interface import Completion, Request
from worker.engine.recorded import Record, Step

#: Operations that wait for the device, or bring something from the host: a graph can hold neither.
HOST = {"_local_scalar_dense", "item", "nonzero", "masked_select", "lift_fresh", "lift_fresh_copy"}


class Tracer:
    """Records as a CUDA graph does, and counts."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0
        self.operations: set[str] = set()

    def __call__(self, step: Step, inputs: Tensor) -> Callable[[], Tensor]:
        self.recorded += 1
        traced = make_fx(step)(inputs)
        targets = [str(node.target) for node in traced.graph.nodes]
        self.operations |= {name.split(".")[1] for name in targets if name.startswith("aten.")}

        def replay() -> Tensor:
            self.replayed += 1
            scores: Tensor = traced(inputs)
            return scores

        return replay


@pytest.fixture(autouse=True)
def short_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let texts as short as the tests' grow out of several shapes."""
    monkeypatch.setattr(recorded, "LEAST_REACH", 64)


def answers(
    model: Any, tokenizer: Any, record: Record | None, requests: Sequence[Request], **more: Any
) -> list[Completion]:
    """Ask for all at once, again, so that drafts are made, and then one by one."""
    more = {"context": CONTEXT, "form": StackedLinear, **more}
    engine = BatchingEngine(model, tokenizer, record=record, **more)
    found = [g.result() for _ in range(2) for g in [engine.submit(each) for each in requests]]
    found += [engine.submit(each).result() for each in requests[:4]]
    engine.close()
    return found


def differing(one: Sequence[Completion], other: Sequence[Completion]) -> list[int]:
    return [i for i, both in enumerate(zip(one, other, strict=True)) if not same(*both)]


def check(
    make: Callable[[], Any], tokenizer: Any, requests: Sequence[Request], **more: Any
) -> Tracer:
    """Compare the texts with recordings and without."""
    tracer = Tracer()
    wanted = answers(make(), tokenizer, None, requests, **more)
    found = answers(make(), tokenizer, tracer, requests, **more)
    assert differing(found, wanted) == []
    assert tracer.replayed > 2 * tracer.recorded > 4
    return tracer


@pytest.mark.parametrize(("slots", "temperature"), [(1, 0.75), (8, 0.0), (23, 0.75)])
def test_texts_are_the_same(
    checkpoint: Path, tokenizer: Any, slots: int, temperature: float
) -> None:
    """One at a time; more than the cache's rows would pay to pick; some of many rows."""
    rng = random.Random(slots)
    requests = [request(rng, temperature=temperature) for _ in range(12)]
    tracer = check(lambda: load_models(checkpoint), tokenizer, requests, slots=slots)
    assert "index_copy_" in tracer.operations
    assert not tracer.operations & HOST


@pytest.mark.parametrize("architecture", ["llama", "qwen"])
def test_adapters_of_different_ranks_and_targets_are_recorded(
    architecture: str, tokenizer: Any
) -> None:
    rng = random.Random(3)
    check(
        lambda: together(mixed(architecture)), tokenizer, [request(rng) for _ in range(6)], slots=4
    )


@pytest.mark.parametrize("kind", ["checkpoint", "sliding"])
def test_nothing_is_lost_at_the_contexts_end(
    kind: str, request: pytest.FixtureRequest, tokenizer: Any
) -> None:
    """Texts that fill their rows, where short ones ran beside idle rows, and drafts that reach beyond.

    In a sliding window, an idle row's last position sees nothing of what short texts look at.
    """
    folder: Path = request.getfixturevalue(kind)
    length = len(tokenizer.encode(" ".join(WORDS)))
    requests = [
        Request(
            role, " ".join([*WORDS, *WORDS[:more]]), Sampling(temperature=0, max_output_tokens=n)
        )
        for role, n in zip(Role, (150, 150, 20), strict=True)
        for more in (0, 4)
    ]
    check(lambda: load_models(folder), tokenizer, requests, slots=4, context=length + 158)


def test_models_that_transformers_computes_are_not_recorded(tokenizer: Any) -> None:
    tracer = Tracer()
    requests = [request(random.Random(5)) for _ in range(4)]
    wanted, found = (
        answers(together(mixed("qwen3")), tokenizer, r, requests, slots=4) for r in (None, tracer)
    )
    assert differing(found, wanted) == []
    assert not tracer.recorded


def test_without_recordings_all_goes_on(
    checkpoint: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_step: Step, _inputs: Tensor) -> Callable[[], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    requests = [request(random.Random(4)) for _ in range(4)]
    wanted, found = (
        answers(load_models(checkpoint), tokenizer, record, requests, slots=4)
        for record in (None, refuse)
    )
    assert differing(found, wanted) == []
    [said] = [r for r in caplog.records if r.name == "worker.engine.recorded"]
    assert said.exc_info, "the log says why"
