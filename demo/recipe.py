"""The recipe of the demo's checkpoint: a tokenizer, a base, three full fine-tunes, three adapters.

Everything is seeded. Finished parts are not repeated, and an interrupted training continues from its
last save.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from matplotlib.figure import Figure
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from demo import tokenizer as tokenizers
from demo import training
from demo.corpus import Lesson
from demo.training import Plan
from jobs.pipeline import Role
from worker.lora.extract import extract
from worker.lora.lowrank import Target

#: PyTorch's sums depend on the number of threads. With a fixed number, runs are identical bit for bit.
THREADS = 2
#: The adapters' rank. It holds nearly all of the fine-tunes' differences (docs/miniature.md).
RANK = 32


@dataclass(frozen=True)
class Recipe:
    """Sizes of the model and lengths of the trainings. The defaults are the shipped miniature's."""

    hidden: int = 192
    intermediate: int = 640
    layers: int = 4
    base: dict[Lesson, Plan] = field(
        default_factory=lambda: {
            Lesson.COLUMNS: Plan(steps=4500, rate=4e-3, muon_rate=1e-2),
            Lesson.ANSWERS: Plan(steps=2200, rate=1.5e-3, muon_rate=3e-3),
            Lesson.DIGITS: Plan(steps=450, rate=1.5e-3, muon_rate=4e-3, warmup=20),
            Lesson.LENGTHS: Plan(steps=2400, rate=1.5e-3, muon_rate=4e-3, warmup=20),
        }
    )
    roles: dict[Role, Plan] = field(
        default_factory=lambda: {
            Role.ACTOR: Plan(steps=1300, rate=5e-4, rest_rate=2e-5),
            Role.CRITIC: Plan(steps=480, rate=5e-4, rest_rate=2e-5),
            Role.REGENERATOR: Plan(steps=260, rate=5e-4, rest_rate=2e-5),
        }
    )
    #: A second training of roles with short problems and unusual numbers as often as others. Without it,
    #: the critic objects to answers to short products such as "3*4".
    even: dict[Role, Plan] = field(
        default_factory=lambda: {
            Role.CRITIC: Plan(steps=160, rate=3e-4, rest_rate=2e-5),
        }
    )
    rank: int = RANK


def make(out: Path, work: Path, *, seed: int, recipe: Recipe | None = None) -> None:
    """Train the checkpoint from scratch.

    Args:
        out: the folder for ``base`` and a folder for each role's adapter.
        work: the folder for training states and the full models ``actor``, ``critic`` and
            ``regenerator``. An interrupted recipe continues from here.
        seed: of all random weights and texts.
        recipe: sizes and lengths.
    """
    recipe = recipe or Recipe()
    torch.set_num_threads(THREADS)
    tokenizer = _base(out / "base", work, recipe, seed)
    for role, plan in recipe.roles.items():
        full = work / role
        if not (full / "config.json").exists():
            state = work / "training" / role
            model = MistralForCausalLM.from_pretrained(out / "base", dtype=torch.float32)
            training.train(model, training.role_loss(role, tokenizer, seed), plan, state, role)
            if even_plan := recipe.even.get(role):
                loss = training.role_loss(role, tokenizer, seed, even=True)
                state = state.with_name(f"{role}-even")
                training.train(model, loss, even_plan, state, f"{role}, evenly")
            _save(model, tokenizer, full)
        if not (out / role / "adapter_config.json").exists():
            target = Target(rank=recipe.rank)
            extract(out / "base", full, out / role, target=target, base_name="base")


def _base(folder: Path, work: Path, recipe: Recipe, seed: int) -> PreTrainedTokenizerFast:
    """Train the base in two parts: the last lesson starts from the saved weights of the others."""
    first = work / "base-before-lengths"
    *lessons, last = recipe.base
    if not (folder / "config.json").exists():
        tokenizer = tokenizers.train(seed)
        if not (first / "config.json").exists():
            torch.manual_seed(seed)
            model = MistralForCausalLM(_config(tokenizer, recipe))
            for lesson in lessons:
                _teach(model, tokenizer, lesson, work, recipe, seed)
            _save(model, tokenizer, first)
        model = MistralForCausalLM.from_pretrained(first, dtype=torch.float32)
        _teach(model, tokenizer, last, work, recipe, seed)
        _save(model, tokenizer, folder)
    loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return loaded


def _teach(
    model: MistralForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    lesson: Lesson,
    work: Path,
    recipe: Recipe,
    seed: int,
) -> None:
    name = lesson.name.lower()
    loss = training.base_loss(lesson, tokenizer, seed)
    state = work / "training" / name
    training.train(model, loss, recipe.base[lesson], state, f"base, {name}")


def _config(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> MistralConfig:
    heads = recipe.hidden // 32
    return MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=tokenizers.CONTEXT,
        sliding_window=None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _save(model: MistralForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save in half precision, like HelixNet's models. The folder appears when it is complete."""
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    for parameter in model.parameters():
        parameter.data = parameter.data.half()
    model.config.dtype = torch.float16
    model.save_pretrained(new)
    tokenizer.save_pretrained(new)
    new.rename(folder)


def draw(work: Path, file: Path) -> None:
    """Plot the loss curves of the trainings in ``work``."""
    names = [*(lesson.name.lower() for lesson in Lesson), *Role]
    curves = {name: curve for name in names if (curve := _curve(work, name))}
    figure = Figure(figsize=(1 + 1.8 * len(curves), 3.2), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (name, curve) in zip(panels, curves.items(), strict=True):
        axes.plot(curve, color="#1a6fc2", alpha=0.25, linewidth=0.5)
        axes.plot(_smooth(curve), color="#1a6fc2", linewidth=1.2)
        axes.set_title(name if name in list(Role) else f"base, {name}")
        axes.set_xlabel("step")
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("loss, nats a token")
    figure.savefig(file, metadata={"Date": None})


def _curve(work: Path, name: str) -> list[float]:
    """Return the losses of a training and of the second one after it; empty if there is none."""
    files = [work / "training" / part / "loss.json" for part in (name, f"{name}-even")]
    return [loss for file in files if file.exists() for loss in json.loads(file.read_text())]


def _smooth(curve: list[float]) -> list[float]:
    smoothed, mean = [], curve[0]
    for value in curve:
        mean += 0.05 * (value - mean)
        smoothed.append(mean)
    return smoothed
