"""The allocated blocks fit the measured memory. The device is a fake, since CI has no GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MistralConfig

from worker.engine.attention.paged_batch import PagedBatch
from worker.engine.cuda import torch_ops
from worker.engine.cuda.requirements import DeviceError
from worker.engine.kv import gpu_memory
from worker.engine.kv.paged_cache import BLOCK_SIZE, PagedKVCache
from worker.engine.kv.shape import kv_bytes_per_token

CPU = torch.device("cpu")
GB = 2**30
CONFIG = MistralConfig(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)


@dataclass
class Card:
    """A fake CUDA device: the memory figures of `torch.cuda`."""

    total: int
    #: Bytes used by other processes.
    taken: int = 0
    #: Bytes that PyTorch has reserved, and bytes of tensors.
    reserved: int = 0
    allocated: int = 0
    #: The limit of PyTorch's memory.
    share: float = 1.0
    #: The peak of tensors' bytes since the last reset.
    peak: int = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Card:
        free = self.total - self.taken - self.reserved
        answers: dict[str, Any] = {
            "empty_cache": lambda: None,
            "synchronize": lambda _: None,
            "mem_get_info": lambda _: (free, self.total),
            "get_per_process_memory_fraction": lambda _: self.share,
            "memory_reserved": lambda _: self.reserved,
            "memory_allocated": lambda _: self.allocated,
            "reset_peak_memory_stats": lambda _: setattr(self, "peak", self.allocated),
            "max_memory_allocated": lambda _: self.peak,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, answer)
        return self


@pytest.mark.parametrize(
    ("card", "free"),
    [
        (Card(80 * GB), 80 * GB),
        (Card(80 * GB, taken=30 * GB), 50 * GB),
        (Card(80 * GB, taken=30 * GB, reserved=20 * GB, allocated=20 * GB), 30 * GB),
        # What PyTorch has reserved and does not use are gaps between tensors.
        (Card(80 * GB, reserved=20 * GB, allocated=15 * GB), 60 * GB),
        (Card(80 * GB, reserved=20 * GB, allocated=15 * GB, share=0.5), 20 * GB),
        (Card(80 * GB, taken=70 * GB, share=0.5), 10 * GB),
        (Card(80 * GB, reserved=50 * GB, allocated=50 * GB, share=0.5), 0),
    ],
)
def test_free_memory_is_limited_by_device_and_process(
    card: Card, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    card.install(monkeypatch)
    assert gpu_memory.free_bytes(CPU) == free


def blocks(
    context: int = 128, working: int = 0, graphs: bool = False, wanted: int = 1 << 40
) -> int:
    return gpu_memory.num_blocks_that_fit(
        CONFIG,
        torch.float16,
        CPU,
        block_size=BLOCK_SIZE,
        max_model_len=context,
        max_num_tokens=wanted,
        activation_bytes=working,
        cuda_graphs=graphs,
    )


@pytest.mark.parametrize("working", [0, 300_000_000])
def test_allocated_blocks_fit_in_memory(working: int, monkeypatch: pytest.MonkeyPatch) -> None:
    Card(4 * GB).install(monkeypatch)
    num_blocks = blocks(working=working)
    cache = PagedKVCache(
        CONFIG, num_blocks=num_blocks, dtype=torch.float16, device=torch.device("meta")
    )
    room = 4 * GB - working - gpu_memory.RESERVED_BYTES
    assert 0.95 * room < cache.nbytes <= gpu_memory.UTILIZATION * room
    token_bytes = kv_bytes_per_token(CONFIG, torch.float16)
    assert cache.nbytes == num_blocks * BLOCK_SIZE * token_bytes


def test_graphs_have_memory_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much as a step that fits none of them: with a large vocabulary, more than is reserved for any model."""
    Card(4 * GB).install(monkeypatch)
    assert blocks(working=800_000_000, graphs=True) == blocks(working=1_600_000_000)


def test_no_more_blocks_are_taken_than_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    Card(4 * GB).install(monkeypatch)
    fitting = (blocks() - 1) * BLOCK_SIZE
    assert blocks(wanted=fitting + 1) == blocks()
    assert blocks(wanted=fitting - BLOCK_SIZE) == blocks() - 1
    assert blocks(wanted=1) == 2, "block 0 is for padding"


def test_a_context_larger_than_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Card(4 * GB).install(monkeypatch)
    # Block 0 is for padding.
    max_context = (blocks() - 1) * BLOCK_SIZE
    assert blocks(context=max_context) == max_context // BLOCK_SIZE + 1
    with pytest.raises(DeviceError, match="set HELIXQ_MAX_CONTEXT lower") as excinfo:
        blocks(context=max_context + 1)
    assert "and 4.3 GB are free" in str(excinfo.value)
    Card(4 * GB, taken=4 * GB).install(monkeypatch)
    with pytest.raises(DeviceError, match=r"and 0\.0 GB are free"):
        blocks()


def test_the_profile_run_uses_the_largest_step(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(GB, allocated=1000).install(monkeypatch)
    batches: list[PagedBatch] = []

    def compute(batch: PagedBatch, cache: PagedKVCache, logits_indices: Tensor) -> Tensor:
        """Allocate 5,000 bytes."""
        batches.append(batch)
        card.peak = max(card.peak, card.allocated + 5000)
        assert cache.num_blocks > 0
        return torch.zeros(len(logits_indices), 300)

    sizes = {"max_num_batched_tokens": 32, "max_num_seqs": 4, "tile_tokens": 16}
    peak_bytes = gpu_memory.profile_run(compute, torch_ops, CONFIG, torch.float16, CPU, **sizes)
    assert peak_bytes == 5000
    [batch] = batches
    assert batch.tile_tokens == 16, "kernels are compiled for tiles of this size"
    assert (len(batch.input_ids), batch.num_decode_tokens) == (36, 4)
    assert (batch.positions < 0).all()
    assert (batch.adapter_ids < 0).all()
