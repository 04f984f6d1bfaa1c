"""What is allocated fits the memory that was counted; the device is a fake, as CI has none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import MistralConfig

from jobs.pipeline import Role
from worker.checkpoints import CheckpointError
from worker.engine.kv.cache import KVCache
from worker.main import MEMORY_SHARE, _affordable

CONTEXT = 128
CONFIG = MistralConfig(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
)


@dataclass
class Found:
    """What `worker.checkpoints.find` would have found on a machine with a GPU."""

    device = torch.device("cuda:0")
    dtype = torch.float16
    context = CONTEXT
    adapters = dict.fromkeys(Role)


@pytest.mark.parametrize(
    ("fits", "slots", "wanted"),
    [
        (1, 1, (1, 1)),
        (2, 1, (1, 2)),
        (2, 8, (2, 2)),
        (9, 1, (1, 3)),
        (9, 4, (4, 4)),
        (9, 64, (9, 9)),
    ],
)
def test_the_rows_that_are_allocated_fit(
    fits: int, slots: int, wanted: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: Any = Found()
    each = KVCache.bytes_per_token(CONFIG, found.dtype) * CONTEXT
    free = int((fits + 0.5) * each / MEMORY_SHARE)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, free))
    affordable = _affordable(CONFIG, found, slots)
    assert affordable == wanted
    cache = KVCache(
        CONFIG, rows=affordable[1], context=CONTEXT, dtype=found.dtype, device=torch.device("cpu")
    )
    assert cache.nbytes <= free * MEMORY_SHARE


def test_a_context_that_does_not_fit_once_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found: Any = Found()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 1000))
    with pytest.raises(CheckpointError, match="set HELIXQ_MAX_CONTEXT lower"):
        _affordable(CONFIG, found, 4)
