"""The miniature's recipe, on models that train in seconds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, MistralForCausalLM

from demo import corpus, recipe, training
from demo.corpus import Lesson
from demo.muon import orthogonal
from demo.recipe import Recipe
from demo.training import Plan
from jobs import settings
from jobs.pipeline import Role
from tests.conftest import model_settings
from worker.checkpoints import loading
from worker.checkpoints.discovery import find_checkpoints

SHORT = Plan(steps=2, rate=1e-3, warmup=1, save_every=2)
TINY = Recipe(
    hidden=64,
    intermediate=96,
    layers=1,
    base=dict.fromkeys(Lesson, Plan(steps=2, rate=1e-3, muon_rate=1e-3, warmup=1, save_every=1)),
    roles=dict.fromkeys(Role, SHORT),
    even={Role.CRITIC: SHORT},
    rank=8,
)


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    """Keep the number of threads: beside other tests, two mostly wait for each other, and keep processors busy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "THREADS", torch.get_num_threads())
        yield


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    recipe.make(folder / "checkpoint", folder, seed=0, recipe=TINY)
    return folder


def test_the_recipe_makes_what_the_worker_loads(build: Path, tmp_path: Path) -> None:
    environ = {**model_settings(build / "checkpoint"), "HELIXQ_DATA_DIR": str(tmp_path)}
    loaded = loading.load(find_checkpoints(settings.load(environ)))
    assert set(loaded.models) == set(Role)
    recipe.draw(build, build / "curves.svg")
    assert "</svg>" in (build / "curves.svg").read_text()


def test_existing_checkpoints_are_not_trained_again(
    build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: object) -> None:
        raise AssertionError("it trains again")

    monkeypatch.setattr(training, "train", train)
    recipe.make(build / "checkpoint", build, seed=0, recipe=TINY)


@pytest.mark.parametrize("optimizer", ["muon", "adam"])
def test_an_interrupted_training_gives_the_same_weights(
    build: Path, tmp_path: Path, optimizer: str
) -> None:
    rate = 1e-3 if optimizer == "muon" else 0.0
    plan = Plan(steps=5, rate=1e-3, muon_rate=rate, warmup=2, save_every=2)
    base = build / "checkpoint" / "base"
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    loss = training.base_loss(Lesson.ANSWERS, tokenizer, 0, rows=2, length=32)

    def power_cut(model: MistralForCausalLM, step: int) -> torch.Tensor:
        if step == 3:
            raise KeyboardInterrupt
        return loss(model, step)

    def load() -> MistralForCausalLM:
        return MistralForCausalLM.from_pretrained(base, dtype=torch.float32)

    uninterrupted, resumed = load(), load()
    training.train(uninterrupted, loss, plan, tmp_path / "whole", "whole")
    with pytest.raises(KeyboardInterrupt):
        training.train(resumed, power_cut, plan, tmp_path / "parts", "parts")
    resumed = load()
    training.train(resumed, loss, plan, tmp_path / "parts", "parts")
    for name, weight in uninterrupted.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    full_curve, resumed_curve = (
        (tmp_path / x / "loss.json").read_text() for x in ("whole", "parts")
    )
    assert full_curve == resumed_curve


@pytest.mark.parametrize("role", list(Role))
def test_a_shared_prefix_changes_no_loss(build: Path, role: Role) -> None:
    """The loss equals the sum over examples computed one by one."""
    base = build / "checkpoint" / "base"
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    model: Any = MistralForCausalLM.from_pretrained(base, dtype=torch.float32)
    rng = random.Random(f"0/{role}/7")
    system = corpus.system(rng)
    total, tokens = 0.0, 0
    for _ in range(6):
        example = corpus.example(role, rng, system)
        prompt = tokenizer.encode(example.prompt)
        text = [
            *tokenizer.encode(example.text, add_special_tokens=False),
            tokenizer.eos_token_id,
        ]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + text])).logits[0]
        target = torch.tensor(text)
        total += float(
            torch.nn.functional.cross_entropy(logits[len(prompt) - 1 : -1], target, reduction="sum")
        )
        tokens += len(text)
    loss = training.role_loss(role, tokenizer, 0, examples=6)(model, 7)
    assert float(loss.detach()) == pytest.approx(total / tokens, rel=1e-4)


@pytest.mark.parametrize("shape", [(3, 40, 24), (2, 24, 40)])
def test_muon_updates_are_nearly_orthogonal(shape: tuple[int, int, int]) -> None:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(x))
    assert values.shape == (shape[0], 24)
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.3
