"""Linear layers with adapters: all implementations equal the plain formula, token by token."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from worker.engine.lora.factors import LoRAFactors, Projection
from worker.engine.lora.grouped_linear import GroupedLoRALinear
from worker.engine.lora.linear import LoRALayers, LoRALinear
from worker.engine.lora.mapping import LoRAMapping
from worker.engine.lora.merged_linear import MergedLoRALinear
from worker.engine.lora.stacked_linear import StackedLoRALinear

IMPLEMENTATIONS: list[LoRALinear] = [GroupedLoRALinear, MergedLoRALinear, StackedLoRALinear]
INPUT = 12
#: For each of two projections: outputs, whether it has a bias, and the rank of each adapter.
PROJECTIONS = [(8, True, (3, None, 5)), (6, False, (None, None, 2))]
#: Mixed, in segments of a token, and all of one adapter: with factors, and without.
BATCHES = [(0, 0, 2, 1, 1, 0), (2, 1, 0), (2, 2), (1,)]


@pytest.fixture
def projections() -> list[Projection]:
    torch.manual_seed(0)
    return [
        Projection(
            nn.Linear(INPUT, out, bias=bias),
            [None if rank is None else factors(rank, out) for rank in ranks],
        )
        for out, bias, ranks in PROJECTIONS
    ]


def factors(rank: int, out: int) -> LoRAFactors:
    return torch.randn(rank, INPUT), torch.randn(out, rank)


def expected(projections: Sequence[Projection], x: Tensor, adapter_ids: Sequence[int]) -> Tensor:
    """Return W x + B A x, the outputs of all projections side by side."""
    rows = []
    for row, adapter_id in zip(x, adapter_ids, strict=True):
        outputs = []
        for projection in projections:
            output = projection.base(row)
            if pair := projection.factors[adapter_id]:
                a, b = pair
                output = output + b @ (a @ row)
            outputs.append(output)
        rows.append(torch.cat(outputs))
    return torch.stack(rows)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("adapter_ids", BATCHES)
@torch.inference_mode()
def test_each_token_gets_its_adapter(
    implementation: LoRALinear, adapter_ids: tuple[int, ...], projections: list[Projection]
) -> None:
    mapping = LoRAMapping()
    mapping.set(adapter_ids, torch.device("cpu"))
    x = torch.randn(len(adapter_ids), INPUT)
    output = expected(projections, x, adapter_ids)
    fused = implementation(projections, mapping)
    torch.testing.assert_close(fused(x), output, rtol=1e-5, atol=1e-5)
    # Models of transformers have a batch dimension.
    torch.testing.assert_close(fused(x[None]), output[None], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.inference_mode()
def test_a_layer_without_adapters_is_the_base(implementation: LoRALinear) -> None:
    base = nn.Linear(INPUT, 5)
    mapping = LoRAMapping()
    mapping.set([0, 1], torch.device("cpu"))
    x = torch.randn(2, INPUT)
    fused = implementation([Projection(base, [None, None])], mapping)
    torch.testing.assert_close(fused(x), base(x), rtol=1e-6, atol=1e-6)


class Quantized(nn.Linear):
    """As a layer of 4 bits: its weight is no matrix to add to or to append to."""

    def __init__(self) -> None:
        super().__init__(INPUT, 8)
        self.hidden = self.weight.detach().clone()
        self.weight.data = torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.hidden, self.bias)


@pytest.mark.parametrize("implementation", [GroupedLoRALinear, StackedLoRALinear])
@torch.inference_mode()
def test_a_quantized_layer_computes_its_part_itself(implementation: LoRALinear) -> None:
    torch.manual_seed(0)
    projections = [Projection(Quantized(), [factors(3, 8), None, factors(5, 8)])]
    mapping = LoRAMapping()
    mapping.set(BATCHES[0], torch.device("cpu"))
    x = torch.randn(len(BATCHES[0]), INPUT)
    output = expected(projections, x, BATCHES[0])
    fused = implementation(projections, mapping)
    torch.testing.assert_close(fused(x), output, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_layers_are_fused_with_their_own_factors() -> None:
    """Factors belong to a layer's name; a layer that no adapter changes has none."""
    torch.manual_seed(0)
    base = nn.ModuleDict({"q": nn.Linear(INPUT, 4), "k": nn.Linear(INPUT, 4)})
    pair = factors(2, 4)
    layers = LoRALayers(base, {"k": [None, pair]}, 2, GroupedLoRALinear)
    assert layers.adapted_names == ["k"]
    fused = layers.fuse(base["q"], base["k"])
    layers.mapping.set([0, 1], torch.device("cpu"))
    x = torch.randn(2, INPUT)
    q, k = fused(x).chunk(2, dim=-1)
    torch.testing.assert_close(q, base["q"](x))
    torch.testing.assert_close(k[0], base["k"](x[0]))
    torch.testing.assert_close(k[1], base["k"](x[1]) + pair[1] @ (pair[0] @ x[1]))
