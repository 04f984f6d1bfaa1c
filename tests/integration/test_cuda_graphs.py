"""Steps replayed as CUDA graphs give the same texts as steps without graphs.

There is no CUDA graph on a CPU. What stands for one here repeats the operations that PyTorch saw, with the
tensors that it saw, as a graph does, and knows nothing of the code around them.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from jobs.pipeline import Role, Sampling
from tests.conftest import load_models
from tests.integration.batches import CONTEXT, FEW, WORDS, complete, request, same, together
from tests.integration.test_batching import mixed
from worker.engine.batching import batch_shape, paged_model_runner, sampler
from worker.engine.batching.cuda_graphs import Capture, StepFunction, StepOutputs
from worker.engine.batching.engine import BatchingEngine
from worker.engine.batching.runner_setup import RunnerOptions
from worker.engine.batching.sampler import SamplingMetadata
from worker.engine.interface import Completion, Request

#: Operations that synchronize or copy from the host, which a graph cannot contain.
HOST = {
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "item",
    "lift_fresh",
    "lift_fresh_copy",
    "masked_select",
    "nonzero",
}
SLOTS = 5


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types there
    """Records all operations, with their arguments and results."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.seen: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(
        self, function: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        self.seen.append((function, args, kwargs or {}, result))
        return result

    def repeat(self, results: StepOutputs) -> StepOutputs:
        """Repeat all operations; return the new results."""
        now: dict[int, Any] = {}

        def current(x: Any) -> Any:
            return now.get(id(x), x)

        for function, args, kwargs, before in self.seen:
            args_, kwargs_ = tree_map(current, (args, kwargs))
            result = function(*args_, **kwargs_)
            for old, new in zip(tree_leaves(before), tree_leaves(result), strict=True):
                if isinstance(old, Tensor):
                    now[id(old)] = new
        tokens, logits = map(current, results)
        return tokens, logits


class Tracer:
    """A fake CUDA graph capture that counts its replays."""

    def __init__(self) -> None:
        #: The sizes of the captures' inputs, and the number of replays of each.
        self.sizes: list[int] = []
        self.replayed: dict[int, int] = {}
        self.names: set[str] = set()

    def __call__(self, step: StepFunction, inputs: Tensor) -> Callable[[], StepOutputs]:
        number = len(self.sizes)
        self.sizes.append(len(inputs))
        self.replayed[number] = 0
        with Operations() as operations:
            results = step(inputs)
        self.names |= {function.overloadpacket.__name__ for function, *_ in operations.seen}

        def replay() -> StepOutputs:
            self.replayed[number] += 1
            outputs: StepOutputs = operations.repeat(results)
            return outputs

        return replay


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes for small steps. Texts outgrow the shapes for short sequences."""
    monkeypatch.setattr(batch_shape, "CAPTURE_SIZES", (1, 3))
    monkeypatch.setattr(batch_shape, "MIXED_DECODE_SIZES", (8,))
    monkeypatch.setattr(batch_shape, "MIXED_TOKEN_SIZES", (16, 48))
    monkeypatch.setattr(batch_shape, "MIXED_EXTRA_SAMPLES", 3)
    monkeypatch.setattr(batch_shape, "MIXED_EXTRA_TILES", 3)
    monkeypatch.setattr(batch_shape, "CAPTURE_DISTANCE", 2)
    monkeypatch.setattr(batch_shape, "SHORT_KV_LENS", (64,))


def answers(
    model: Any, tokenizer: Any, record: Capture | None, requests: Sequence[Request], **options: Any
) -> list[Completion]:
    """Submit all requests together, then some one by one."""
    built = RunnerOptions(
        max_model_len=CONTEXT,
        max_num_seqs=SLOTS,
        max_num_batched_tokens=64,
        paged=True,
        capture=lambda _: record,
    )
    engine = BatchingEngine.from_models(model, tokenizer, replace(built, **options))
    completions = complete(engine, requests)
    completions += [engine.submit(request).result() for request in requests[:2]]
    assert engine.config.paged
    if isinstance(record, Tracer):
        assert engine.config.cuda_graphs == bool(record.sizes)
    engine.close()
    return completions


def differing(completions: Sequence[Completion], expected: Sequence[Completion]) -> list[int]:
    return [i for i, pair in enumerate(zip(completions, expected, strict=True)) if not same(*pair)]


def check(
    make: Callable[[], Any], tokenizer: Any, requests: Sequence[Request], **options: Any
) -> Tracer:
    """Compare the texts with and without CUDA graphs."""
    tracer = Tracer()
    expected = answers(make(), tokenizer, None, requests, **options)
    completions = answers(make(), tokenizer, tracer, requests, **options)
    assert differing(completions, expected) == []
    assert sum(tracer.replayed.values()) > 2 * len(tracer.replayed)
    return tracer


@pytest.mark.parametrize("temperature", [0.0, 0.75])
def test_texts_are_the_same(checkpoint: Path, tokenizer: Any, temperature: float) -> None:
    """Mixed steps and decode steps of many sizes; steps larger than any shape run without a graph."""
    rng = random.Random(5)
    requests = [request(rng, temperature=temperature) for _ in range(16)]
    tracer = check(lambda: load_models(checkpoint), tokenizer, requests)
    assert sum(map(bool, tracer.replayed.values())) > 4, "most shapes are used"
    mixed = [number for number, size in enumerate(tracer.sizes) if size > 9 * SLOTS]
    assert sum(tracer.replayed[number] for number in mixed) > 3
    assert "index_copy_" in tracer.names
    assert not tracer.names & HOST


def test_unsupported_sampling_runs_after_the_graph(checkpoint: Path, tokenizer: Any) -> None:
    """Top-p and large top-k. The next step must read the token that was sampled afterwards."""
    rng = random.Random(6)
    kinds = itertools.cycle([(0, 1.0), (50, 0.8), (50, 1.0), (200, 1.0)])
    requests = []
    for top_k, top_p in itertools.islice(kinds, 12):
        original = request(rng, temperature=1.0)
        requests.append(
            replace(original, sampling=replace(original.sampling, top_k=top_k, top_p=top_p))
        )
    check(lambda: load_models(checkpoint), tokenizer, requests)


def test_candidates_that_are_sampled_together_are_limited(
    checkpoint: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the whole vocabulary as candidates, 256 rows would need more memory than a GPU has left."""
    rng = random.Random(6)
    requests = [request(rng, temperature=1.0) for _ in range(6)]
    requests = [replace(r, sampling=replace(r.sampling, top_k=0)) for r in requests]
    expected = answers(load_models(checkpoint), tokenizer, None, requests)
    sizes: list[int] = []
    sample = sampler.sample

    def counting(
        logits: Tensor, metadata: SamplingMetadata, **options: Any
    ) -> tuple[Tensor, Tensor]:
        if not options:  # after the step
            sizes.append(logits.numel())
        return sample(logits, metadata, **options)

    monkeypatch.setattr(sampler, "sample", counting)
    monkeypatch.setattr(paged_model_runner, "MAX_CANDIDATES", 2000)
    completions = answers(load_models(checkpoint), tokenizer, None, requests)
    assert differing(completions, expected) == []
    assert max(sizes) <= 2000


@pytest.mark.parametrize("architecture", ["llama", "qwen"])
def test_adapters_of_different_ranks_and_targets_are_captured(
    architecture: str, tokenizer: Any
) -> None:
    rng = random.Random(3)
    check(lambda: together(mixed(architecture)), tokenizer, [request(rng) for _ in range(6)])


@pytest.mark.parametrize("kind", ["checkpoint", "sliding"])
def test_texts_may_fill_the_context(
    kind: str, request: pytest.FixtureRequest, tokenizer: Any
) -> None:
    """Texts that fill a context that is no multiple of a block, beside short ones."""
    folder: Path = request.getfixturevalue(kind)
    length = len(tokenizer.encode(" ".join(WORDS)))
    requests = [
        Request(
            role,
            " ".join([*WORDS, *WORDS[:num_extra]]),
            Sampling(temperature=0, max_output_tokens=n),
        )
        for role, n in zip(Role, (60, 60, 20), strict=True)
        for num_extra in (0, 4)
    ]
    check(lambda: load_models(folder), tokenizer, requests, max_model_len=length + 67)


def test_preempted_sequences_are_recomputed_with_graphs(
    checkpoint: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rng = random.Random(8)
    requests = [request(rng, temperature=0.75) for _ in range(8)]
    requests = [replace(r, sampling=replace(r.sampling, max_output_tokens=80)) for r in requests]
    check(lambda: load_models(checkpoint), tokenizer, requests, num_blocks=FEW)
    assert "preempted a request" in caplog.text


def test_models_run_by_transformers_are_not_captured(tokenizer: Any) -> None:
    tracer = Tracer()
    requests = [request(random.Random(5)) for _ in range(4)]
    expected, completions = (
        answers(together(mixed("qwen3")), tokenizer, r, requests, max_num_seqs=4)
        for r in (None, tracer)
    )
    assert differing(completions, expected) == []
    assert not tracer.replayed


def test_the_engine_works_without_graphs(
    checkpoint: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Graphs captured before the error are used, and the log has the error."""
    tracer, left = Tracer(), iter(range(2))

    def refuse(step: StepFunction, inputs: Tensor) -> Callable[[], StepOutputs]:
        if next(left, None) is None:
            raise RuntimeError("operation not permitted when stream is capturing")
        return tracer(step, inputs)

    requests = [request(random.Random(4)) for _ in range(4)]
    expected, completions = (
        answers(load_models(checkpoint), tokenizer, record, requests) for record in (None, refuse)
    )
    assert differing(completions, expected) == []
    assert len(tracer.replayed) == 2
    [warning] = [r for r in caplog.records if r.name == paged_model_runner.__name__]
    assert warning.exc_info
    assert "not permitted when stream is capturing" in str(warning.exc_info[1])


def test_a_shape_that_does_not_fit_in_memory_is_skipped(
    checkpoint: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tracer, attempts = Tracer(), itertools.count()

    def large(step: StepFunction, inputs: Tensor) -> Callable[[], StepOutputs]:
        if not next(attempts):
            raise torch.OutOfMemoryError("out of memory")
        return tracer(step, inputs)

    requests = [request(random.Random(4)) for _ in range(4)]
    expected, completions = (
        answers(load_models(checkpoint), tokenizer, record, requests) for record in (None, large)
    )
    assert differing(completions, expected) == []
    assert len(tracer.replayed) == next(attempts) - 1 > 3
    assert caplog.text.count("out of memory: 1 of ") == 1


def test_capturing_stops_at_its_time_limit(
    checkpoint: Path,
    tokenizer: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a fake clock, a capture takes 25 seconds of the limit of 60."""
    tracer = Tracer()

    def slow(step: StepFunction, inputs: Tensor) -> Callable[[], StepOutputs]:
        now[0] += 25
        return tracer(step, inputs)

    now = [0.0]
    with monkeypatch.context() as patch:
        patch.setattr(
            paged_model_runner,
            "time",
            type("Clock", (), {"monotonic": staticmethod(lambda: now[0])}),
        )
        requests = [request(random.Random(7)) for _ in range(4)]
        completions = answers(load_models(checkpoint), tokenizer, slow, requests)
    assert len(tracer.replayed) == 3
    assert "CUDA graphs in time" in caplog.text
    assert differing(completions, answers(load_models(checkpoint), tokenizer, None, requests)) == []
