"""Separating PEFT models into a base and factors, and the choice of the layers' implementation."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from worker.engine.interface import EngineError
from worker.engine.lora.factors import extract_factors
from worker.engine.lora.grouped_linear import GroupedLoRALinear
from worker.engine.lora.linear import choose_lora_linear
from worker.engine.lora.merged_linear import MergedLoRALinear


class Net(nn.Module):
    """Two layers, and one that no adapter changes."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(size, size)
        self.second = nn.Linear(size, size)
        self.last = nn.Linear(size, 3)

    @property
    def device(self) -> torch.device:
        return self.last.weight.device

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.second(torch.relu(self.first(x))))
        return result


def adapted(net: nn.Module, name: str, **options: Any) -> PeftModel:
    """Return a PEFT model of a copy of a module, with random factors."""
    options = {"r": 2, "lora_alpha": 6, "target_modules": ["first", "second"], **options}
    base: Any = copy.deepcopy(net)
    model = get_peft_model(base, LoraConfig(**options), adapter_name=name)
    with torch.no_grad():
        for parameter_name, weight in model.named_parameters():
            if "lora_" in parameter_name:
                weight.normal_()
    assert isinstance(model, PeftModel)
    return model.eval()


@torch.inference_mode()
def test_base_and_factors_compute_what_the_peft_models_compute() -> None:
    """Adapters of different targets and scalings; B has the scaling."""
    torch.manual_seed(0)
    net, x = Net(), torch.randn(4, 8)
    models = {
        "actor": adapted(net, "actor"),
        "critic": adapted(net, "critic", target_modules=["second"], r=3),
    }
    outputs = [model(x) for model in models.values()]
    base, factors = extract_factors(models)
    assert models == {}
    assert type(base.first) is type(base.second) is nn.Linear
    assert set(factors) == {"first", "second"}
    assert factors["first"][1] is None
    torch.testing.assert_close(base(x), net(x))
    for adapter_id, output in enumerate(outputs):
        hidden = x
        for name in ("first", "second"):
            pair, projected = factors[name][adapter_id], getattr(base, name)(hidden)
            if pair is not None:
                projected = projected + hidden @ pair[0].T @ pair[1].T
            hidden = torch.relu(projected) if name == "first" else projected
        torch.testing.assert_close(base.last(hidden), output)


def test_factors_have_the_dtype_of_the_base() -> None:
    """Beside layers of 4 bits, PEFT keeps them in the dtype in which those multiply."""
    model = adapted(Net(), "actor")
    for parameter_name, weight in model.named_parameters():
        if "lora_" in parameter_name:
            weight.data = weight.data.to(torch.bfloat16)
    _, factors = extract_factors({"actor": model})
    pairs = [pair for of_layer in factors.values() for pair in of_layer if pair is not None]
    assert {tensor.dtype for pair in pairs for tensor in pair} == {torch.float32}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "the critic adapter is not plain LoRA in first"),
        ({"lora_bias": True}, "the critic adapter has a bias in first"),
        ({"modules_to_save": ["last"]}, "the critic adapter replaces last"),
    ],
)
def test_adapters_that_are_more_than_factors_are_refused(
    options: dict[str, Any], message: str
) -> None:
    models = {"critic": adapted(Net(), "critic", **options)}
    with pytest.raises(EngineError, match=message):
        extract_factors(models)


def test_adapters_of_other_methods_are_refused() -> None:
    """IA³ scales outputs of layers."""
    config = IA3Config(target_modules=["first"], feedforward_modules=[])
    model: Any = get_peft_model(cast("Any", Net()), config, adapter_name="critic")
    with pytest.raises(EngineError, match="the critic adapter is not plain LoRA in first"):
        extract_factors({"critic": model})


def test_the_implementation_suits_dtype_and_size() -> None:
    """Weights are merged in float32, where they fit a CPU's cache."""
    assert choose_lora_linear({"actor": adapted(Net(), "actor")}) is MergedLoRALinear
    half = adapted(Net().to(torch.bfloat16), "actor")
    assert choose_lora_linear({"actor": half}) is GroupedLoRALinear
    large = adapted(Net(size=2100), "actor")
    assert choose_lora_linear({"actor": large}) is GroupedLoRALinear
