"""The adapters of a batch's tokens."""

from __future__ import annotations

import torch

from worker.engine.lora.mapping import AdapterSegment, LoRAMapping

CPU = torch.device("cpu")


def test_successive_tokens_of_an_adapter_are_one_segment() -> None:
    mapping = LoRAMapping()
    mapping.set([0, 0, 2, 1, 1, 1, 0], CPU)
    assert mapping.segments == [
        AdapterSegment(0, 0, 2),
        AdapterSegment(2, 2, 3),
        AdapterSegment(1, 3, 6),
        AdapterSegment(0, 6, 7),
    ]


def test_selecting_tokens_reduces_the_batch() -> None:
    mapping = LoRAMapping()
    mapping.set([0, 0, 2, 1], CPU)
    assert mapping.select([1, 2]).tolist() == [1, 2]
    assert mapping.segments == [AdapterSegment(0, 0, 1), AdapterSegment(2, 1, 2)]


def test_a_mask_is_that_of_the_current_batch() -> None:
    table = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    mapping = LoRAMapping()
    for adapter_ids in ([1, 0], [0, 0, 1]):
        mapping.set(adapter_ids, CPU)
        assert torch.equal(mapping.mask(table, (2, 1)), table[adapter_ids])
    mapping.set_tensor(torch.tensor([1, 1, 0]))
    mapping.select_tensor(torch.tensor([0, 2]))
    assert torch.equal(mapping.mask(table, (2, 1)), table[[1, 0]])
