"""The engine on a CUDA device that a CPU simulates: all of its own code that only CUDA runs, but for the kernels."""

from __future__ import annotations

import gc
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.pipeline import Sampling
from tests import simulated_cuda
from tests.conftest import load_models
from tests.integration.batches import CONTEXT, complete, make, request, same
from tests.integration.test_cuda_graphs import few_shapes as few_shapes  # a fixture
from tests.simulated_cuda import DEVICE, RefusedError
from worker.engine import probe
from worker.engine.batching.cuda_graphs import CudaGraphCapture
from worker.engine.batching.engine import BatchingEngine
from worker.engine.batching.runner_setup import KV_TOKENS_PER_SEQ, MAX_KV_COPIES, RunnerOptions
from worker.engine.kv import gpu_memory
from worker.engine.kv.paged_cache import BLOCK_SIZE
from worker.engine.kv.shape import kv_bytes_per_token

SEQUENCES = 5
#: Greedy, within the recorded step, and after it: with a large top-k, without one, and with top-p.
SAMPLINGS = (
    Sampling(temperature=0),
    Sampling(temperature=1.0),
    Sampling(temperature=1.0, top_k=200),
    Sampling(temperature=1.0, top_k=0),
    Sampling(temperature=1.0, top_p=0.8),
)


def test_texts_are_those_of_a_cpu(
    checkpoint: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing mixes tensors of host and device, no graph waits for the host, and no step does for the device."""
    rng = random.Random(9)
    requests = []
    for number in range(3 * len(SAMPLINGS)):
        plain = request(rng)
        sampling = replace(
            SAMPLINGS[number % len(SAMPLINGS)],
            max_output_tokens=plain.sampling.max_output_tokens,
            seed=number,
        )
        requests.append(replace(plain, sampling=sampling))
    on_cpu = make(checkpoint, tokenizer, max_num_seqs=SEQUENCES, paged=True, capture=None)
    ids = probe.probe_token_ids(next(iter(load_models(checkpoint).values())).config)
    expected_logits = on_cpu.compute_logits(ids)
    expected = complete(on_cpu, requests)
    on_cpu.close()

    models = load_models(checkpoint)
    card = simulated_cuda.install(monkeypatch)
    with simulated_cuda.active():
        engine = BatchingEngine.from_models(
            {name: model.to(DEVICE) for name, model in models.items()},
            tokenizer,
            RunnerOptions(max_model_len=CONTEXT, max_num_seqs=SEQUENCES, max_num_batched_tokens=64),
        )
        assert engine.config.paged
        assert engine.config.cuda_graphs
        assert engine.kv_cache_tokens == MAX_KV_COPIES * SEQUENCES * KV_TOKENS_PER_SEQ, (
            "no more than its sequences can fill, although there is memory for more"
        )
        logits = engine.compute_logits(ids)
    for role, rows in expected_logits.items():
        assert probe.relative_difference(logits[role], rows) < probe.TOLERANCE[torch.float32]
    card.waits.clear()
    completions = complete(engine, requests)
    stats = engine.stats()
    engine.close()
    assert all(same(*pair) for pair in zip(completions, expected, strict=True))
    assert set(card.waits) == {"an event"}, "the host waits only for a step's tokens"
    assert card.replays > 10
    assert stats.gpu_memory == card.total
    assert stats.gpu_memory_used


def test_as_many_sequences_are_computed_at_once_as_there_is_memory_for(
    checkpoint: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside weights, the largest step, and what is reserved, the card has memory for 20."""
    models = load_models(checkpoint)
    model = next(iter(models.values()))
    tokens = 20 * KV_TOKENS_PER_SEQ
    room = int((tokens + BLOCK_SIZE) * kv_bytes_per_token(model.config, model.dtype)) + 1
    card = simulated_cuda.install(monkeypatch)
    profile_run = gpu_memory.profile_run

    def measured(*arguments: Any, **sizes: Any) -> int:
        gc.collect()  # what is dropped of the models: it must not be freed later
        weights = card.allocated
        step = profile_run(*arguments, **sizes)
        assert step > 0
        room_and_rest = int(room / gpu_memory.UTILIZATION) + 1
        card.total = weights + step + gpu_memory.RESERVED_BYTES + room_and_rest
        return step

    monkeypatch.setattr(gpu_memory, "profile_run", measured)
    with simulated_cuda.active():
        engine = BatchingEngine.from_models(
            {name: model.to(DEVICE) for name, model in models.items()},
            tokenizer,
            RunnerOptions(max_model_len=CONTEXT, max_num_batched_tokens=64, capture=None),
        )
        engine.close()
    assert engine.kv_cache_tokens == tokens
    assert engine.max_num_seqs == 20
    assert card.allocated <= card.total - gpu_memory.RESERVED_BYTES


def test_the_simulated_device_refuses_what_a_real_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    simulated_cuda.install(monkeypatch)
    with simulated_cuda.active():
        check_refusals()


def check_refusals() -> None:
    on_device, on_host = torch.ones(3, device=DEVICE), torch.ones(3)
    with pytest.raises(RefusedError, match="add of tensors on the host and on the device"):
        on_device + on_host
    assert (on_device + torch.tensor(1.0)).cpu().tolist() == [2, 2, 2], "a scalar may be anywhere"
    late = torch.empty(3, pin_memory=True)
    late.copy_(on_device, non_blocking=True)
    assert late.tolist() != [1, 1, 1], "it may arrive later"
    torch.cuda.synchronize()
    assert late.tolist() == [1, 1, 1]
    for step in (
        lambda x: x[x > 0],
        lambda x: x.sum().item(),
        lambda x: x.copy_(on_host),
        lambda x: x + torch.tensor([1.0, 1.0, 1.0], device=DEVICE),
    ):
        with pytest.raises(RefusedError, match="while a graph is captured"):
            CudaGraphCapture()(step, on_device)
    replay: Any = CudaGraphCapture()(lambda x: (x * 2, x[:1] + 1), on_device)
    on_device.copy_(torch.full((3,), 5.0))
    assert [output.cpu().tolist() for output in replay()] == [[10, 10, 10], [6]]
