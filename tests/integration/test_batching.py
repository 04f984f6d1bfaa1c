"""The batching engine gives the reference engine's texts in any batch."""

from __future__ import annotations

import copy
import gc
import random
import threading
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from jobs.pipeline import Role, Sampling
from tests.conftest import load_models
from tests.integration.batches import (
    CONTEXT,
    FEW,
    SIZES,
    WORDS,
    compare_with_peft,
    complete,
    make,
    request,
    same,
    together,
)
from tests.joining import join
from worker.engine import probe
from worker.engine.attention import row_metadata
from worker.engine.batching.engine import BatchingEngine
from worker.engine.batching.runner_setup import RunnerOptions
from worker.engine.cuda import torch_ops
from worker.engine.interface import (
    Completion,
    FinishReason,
    Request,
)
from worker.engine.kv.paged_cache import BLOCK_SIZE
from worker.engine.lora.factors import extract_factors
from worker.engine.lora.grouped_linear import GroupedLoRALinear
from worker.engine.lora.linear import LoRALinear
from worker.engine.lora.merged_linear import MergedLoRALinear
from worker.engine.lora.stacked_linear import StackedLoRALinear
from worker.engine.models import packed_linear
from worker.engine.models.paged_llama import PagedLlama
from worker.engine.reference import ReferenceEngine

#: Of the comparison with the reference engine: threads, and prompts of all of them.
CLIENTS, PROMPTS = 12, 96


@pytest.fixture(scope="module")
def greedy(reference: ReferenceEngine) -> list[tuple[Request, Completion]]:
    """Prompts of all roles and lengths, with the reference engine's completions: one at a time, which is slow."""
    rng = random.Random(0)
    requests = [request(rng) for _ in range(PROMPTS)]
    return [(r, reference.submit(r).result()) for r in requests]


def test_greedy_texts_match_the_reference_engine(
    engine: BatchingEngine, greedy: list[tuple[Request, Completion]]
) -> None:
    """From several threads, with cancels in between."""
    requests, expected = zip(*greedy, strict=True)
    completions: dict[int, Completion] = {}

    def client(indices: list[int], seed: int) -> None:
        order = random.Random(seed)
        for i in order.sample(indices, len(indices)):
            if order.random() < 0.2:
                engine.submit(request(order)).cancel()
            generation = engine.submit(requests[i])
            streamed = "".join(generation)
            completions[i] = generation.result()
            assert streamed == completions[i].text

    threads = [
        threading.Thread(target=client, args=(list(range(k, PROMPTS, CLIENTS)), k))
        for k in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        join(thread)
    assert [i for i in range(PROMPTS) if not same(completions[i], expected[i])] == []


def test_cascade_attention_changes_no_text(
    checkpoint: Path, tokenizer: Any, reference: ReferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Common prefixes of different lengths, and requests that arrive later."""
    monkeypatch.setattr(row_metadata, "MIN_CASCADE_SEQS", 2)
    monkeypatch.setattr(row_metadata, "MIN_CASCADE_TOKENS", 2)
    # Otherwise both roles are attended together, without their prefixes, whenever that is faster.
    monkeypatch.setattr(row_metadata.DecodeSpan, "cost", 0)
    engine = make(checkpoint, tokenizer)
    rng = random.Random(9)
    requests = []
    for _ in range(40):
        words = [*WORDS[: rng.choice([3, len(WORDS)])], *rng.choices(WORDS, k=rng.randint(1, 9))]
        sampling = Sampling(temperature=0, max_output_tokens=rng.randint(8, 24))
        requests.append(Request(rng.choice(list(Role)[:2]), " ".join(words), sampling))
    completions = [g.result() for g in [engine.submit(r) for r in requests]]
    engine.close()
    expected = [reference.submit(r).result() for r in requests]
    assert [i for i in range(40) if not same(completions[i], expected[i])] == []


def ends_alike(
    checkpoint: Path, tokenizer: Any, ends: list[int] | None, request: Request, *, paged: bool
) -> None:
    """Compare both engines' texts for a model with these EOS tokens."""
    models = [load_models(checkpoint) for _ in range(2)]
    for model in (model for by_role in models for model in by_role.values()):
        model.generation_config.eos_token_id = ends
    batching = BatchingEngine.from_models(
        models[0], tokenizer, RunnerOptions(max_model_len=CONTEXT, max_num_seqs=2, paged=paged)
    )
    reference = ReferenceEngine(models[1], tokenizer, max_model_len=CONTEXT)
    completion, expected = (e.submit(request).result() for e in (batching, reference))
    batching.close()
    reference.close()
    assert completion.finish_reason is FinishReason.STOP
    assert same(completion, expected), "the token that was computed ahead is dropped"


def test_a_text_ends_at_any_eos_token(
    checkpoint: Path, tokenizer: Any, engine: BatchingEngine, paged: bool
) -> None:
    request = Request(Role.CRITIC, "gravity", Sampling(temperature=0, max_output_tokens=24))
    text = engine.submit(request).result().text
    end = tokenizer.encode(text, add_special_tokens=False)[8]
    ends_alike(checkpoint, tokenizer, [tokenizer.eos_token_id, end], request, paged=paged)


def test_the_tokenizers_eos_token_is_the_fallback(
    checkpoint: Path, tokenizer: Any, engine: BatchingEngine, paged: bool
) -> None:
    request = Request(Role.CRITIC, "gravity", Sampling(temperature=0, max_output_tokens=24))
    text = engine.submit(request).result().text
    ended = copy.deepcopy(tokenizer)
    [*_, end] = tokenizer.tokenize(text, add_special_tokens=False)[:9]
    ended.eos_token = end
    ends_alike(checkpoint, ended, None, request, paged=paged)


def test_generation_settings_of_a_checkpoint_are_ignored(
    checkpoint: Path, tokenizer: Any, reference: ReferenceEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """Some checkpoints have a repetition penalty, which `generate` would apply."""
    request = Request(Role.ACTOR, "gravity", Sampling(temperature=0, max_output_tokens=24))
    expected = reference.submit(request).result()
    for make_engine in (
        lambda models: BatchingEngine.from_models(
            models, tokenizer, RunnerOptions(max_model_len=CONTEXT, max_num_seqs=2)
        ),
        lambda models: ReferenceEngine(models, tokenizer, max_model_len=CONTEXT),
    ):
        models = load_models(checkpoint)
        for model in models.values():
            model.generation_config.repetition_penalty = 5.0
        engine = make_engine(models)
        assert same(engine.submit(request).result(), expected)
        engine.close()
    assert caplog.text.count("ignored generation settings of the model: repetition_penalty") == 2


def test_a_seed_gives_the_same_text_in_any_batch_and_after_a_restart(
    checkpoint: Path, tokenizer: Any, engine: BatchingEngine, paged: bool
) -> None:
    rng = random.Random(1)
    requests = [request(rng, temperature=0.75) for _ in range(64)]
    sequential = [engine.submit(r).result() for r in requests[:16]]
    crowd = make(checkpoint, tokenizer, max_num_seqs=64, max_num_batched_tokens=256, paged=paged)
    generations = [crowd.submit(r) for r in requests]
    concurrent = [g.result() for g in generations]
    crowd.close()
    assert [c.text for c in concurrent[:16]] == [c.text for c in sequential]
    assert [c.deltas for c in concurrent[:16]] == [c.deltas for c in sequential], (
        "with the same deltas"
    )
    assert len({c.text for c in concurrent}) > 50


@pytest.mark.parametrize("temperature", [0.0, 0.75])
def test_preempted_sequences_are_recomputed_to_the_same_text(
    checkpoint: Path, tokenizer: Any, temperature: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory for some of the eight growing sequences. With rows, all have room."""
    caplog.set_level("INFO")
    rng = random.Random(11)
    requests = [request(rng, temperature=temperature) for _ in range(32)]
    requests = [replace(r, sampling=replace(r.sampling, max_output_tokens=80)) for r in requests]
    completions = []
    for options in ({"paged": False}, {"paged": True, "num_blocks": FEW}):
        engine = make(checkpoint, tokenizer, max_num_batched_tokens=32, **options)
        completions.append(complete(engine, requests))
        engine.close()
    preemptions = caplog.text.count("preempted a request")
    assert preemptions > 1
    assert engine.stats().num_preemptions == preemptions
    assert [i for i in range(32) if not same(completions[0][i], completions[1][i])] == []
    assert [c.deltas for c in completions[0]] == [c.deltas for c in completions[1]], (
        "with the same deltas"
    )


def test_any_sampling_works_in_a_mixed_batch(checkpoint: Path, tokenizer: Any) -> None:
    """Large top-k and top-p beside other requests."""
    rng = random.Random(12)
    samplings = [
        Sampling(temperature, max_output_tokens=20, top_k=top_k, top_p=top_p, seed=seed)
        for seed, (temperature, top_k, top_p) in enumerate(
            [(0.75, 50, 1.0), (1.2, 0, 1.0), (0.9, 0, 0.7), (0.9, 100, 0.9), (0.0, 0, 0.5)] * 3
        )
    ]
    requests = [replace(request(rng), sampling=sampling) for sampling in samplings]
    completions = []
    for paged in (False, True):
        engine = make(checkpoint, tokenizer, paged=paged)
        completions.append([g.result() for g in [engine.submit(r) for r in requests]])
        engine.close()
    assert [i for i in range(len(requests)) if not same(completions[0][i], completions[1][i])] == []


@pytest.mark.parametrize("temperature", [0.0, 0.75])
def test_drafts_take_fewer_steps_to_the_same_texts(
    checkpoint: Path, tokenizer: Any, temperature: float
) -> None:
    """Texts are generated twice, so that the drafter has learned them."""
    rng = random.Random(5)
    requests = [request(rng, temperature=temperature) for _ in range(16)]
    completions: dict[bool, list[list[Completion]]] = {}
    steps: dict[bool, int] = {}
    for drafts in (False, True):
        engine = BatchingEngine.from_models(
            load_models(checkpoint),
            tokenizer,
            RunnerOptions(max_model_len=CONTEXT, max_num_seqs=8),
            speculation=drafts,
        )
        completions[drafts] = [complete(engine, requests) for _ in range(6)]
        steps[drafts] = engine.num_steps
        engine.close()
    for repeated in (*completions[False], *completions[True]):
        assert all(same(*pair) for pair in zip(repeated, completions[False][0], strict=True))
        assert [c.deltas for c in repeated] == [c.deltas for c in completions[False][0]]
        assert all(c.first_token_at for c in repeated)
    assert steps[True] < 0.8 * steps[False]


@pytest.fixture(scope="module")
def windowed_texts(sliding: Path, tokenizer: Any) -> list[tuple[Request, str]]:
    """Prompts, with the reference engine's texts under a sliding window."""
    rng = random.Random(2)
    requests = [request(rng) for _ in range(24)]
    reference = ReferenceEngine(load_models(sliding), tokenizer, max_model_len=CONTEXT)
    texts = [(r, reference.submit(r).result().text) for r in requests]
    reference.close()
    return texts


def test_a_sliding_window_is_kept(
    sliding: Path,
    tokenizer: Any,
    engine: BatchingEngine,
    paged: bool,
    windowed_texts: list[tuple[Request, str]],
) -> None:
    requests, expected = zip(*windowed_texts, strict=True)
    windowed = make(sliding, tokenizer, max_num_batched_tokens=7, paged=paged)
    texts = [g.result().text for g in [windowed.submit(r) for r in requests]]
    windowed.close()
    assert texts == list(expected)
    assert texts != [engine.submit(r).result().text for r in requests], "the window matters"


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, head_dim=16)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True)),
    "qwen": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
    # It normalizes its heads, so transformers computes it.
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
}


def mixed(architecture: str) -> PeftModel:
    """A model with adapters of different ranks, scalings and targets."""
    torch.manual_seed(3)
    model: Any = ARCHITECTURES[architecture]()
    configs = {
        Role.ACTOR: LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "up_proj"]),
        Role.CRITIC: LoraConfig(r=5, lora_alpha=5, target_modules=["q_proj", "v_proj"]),
        Role.REGENERATOR: LoraConfig(r=8, lora_alpha=3, target_modules=["down_proj", "o_proj"]),
    }
    peft_model: Any = get_peft_model(model, configs[Role.ACTOR], adapter_name=Role.ACTOR.value)
    for role in (Role.CRITIC, Role.REGENERATOR):
        peft_model.add_adapter(role.value, configs[role])
    with torch.no_grad():
        for name, weight in peft_model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.2)
    model_: PeftModel = peft_model.eval()
    return model_


@pytest.mark.parametrize("form", [GroupedLoRALinear, MergedLoRALinear, StackedLoRALinear])
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_logits_in_a_mixed_batch_are_pefts(
    architecture: str, form: LoRALinear, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All roles in a batch, different ranks and targets, chunked prompts, packed weights."""
    monkeypatch.setattr(packed_linear, "MIN_ELEMENTS", 1)
    compare_with_peft(mixed(architecture), tokenizer, form)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_logits_over_blocks_are_pefts(architecture: str, tokenizer: Any) -> None:
    compare_with_peft(mixed(architecture), tokenizer, paged=True)


def test_scores_are_computed_one_role_at_a_time_if_memory_is_short(
    checkpoint: Path, tokenizer: Any
) -> None:
    """Roles are scored one after the other where memory is short."""
    models = load_models(checkpoint)
    ids = probe.probe_token_ids(models["actor"].config)
    expected = {name: probe.peft_logits(model, name, ids) for name, model in models.items()}
    engine = BatchingEngine.from_models(
        models, tokenizer, RunnerOptions(max_model_len=16, max_num_seqs=3, paged=True, num_blocks=2)
    )
    computed = engine.compute_logits(ids)
    engine.close()
    probe.check(computed, expected, torch.float32, probe.TOLERANCE[torch.float32])


@pytest.mark.parametrize(
    ("blocks", "slots"),
    [(FEW, 1), (3 * 1024 // BLOCK_SIZE + 1, 3), (300 * 1024 // BLOCK_SIZE, 256)],
)
def test_the_default_number_of_slots_fits_the_memory(
    checkpoint: Path, tokenizer: Any, blocks: int, slots: int
) -> None:
    """At least one sequence may have the full context, however small the memory is."""
    models = load_models(checkpoint)
    engine = BatchingEngine.from_models(
        models, tokenizer, RunnerOptions(max_model_len=CONTEXT, paged=True, num_blocks=blocks)
    )
    engine.close()
    assert engine.max_num_seqs == slots
    assert engine.kv_cache_tokens == BLOCK_SIZE * (blocks - 1)


@pytest.mark.parametrize("form", [GroupedLoRALinear, StackedLoRALinear, None])
def test_weights_are_in_memory_once(form: LoRALinear | None, tokenizer: Any) -> None:
    """Base and adapters, and nothing else of their size, since a GPU has no room for it."""
    torch.manual_seed(0)
    config = LoraConfig(r=16, target_modules="all-linear")
    base: Any = MistralForCausalLM(MistralConfig(**{**SIZES, "hidden_size": 256}))
    model: Any = get_peft_model(base, config, adapter_name=Role.ACTOR.value)
    for role in (Role.CRITIC, Role.REGENERATOR):
        model.add_adapter(role.value, config)
    model_bytes = sum(p.nbytes for p in model.parameters())
    engine = BatchingEngine.from_models(
        together(model),
        tokenizer,
        RunnerOptions(max_model_len=64, max_num_seqs=2, lora_linear=form, paged=form is None),
    )
    del base, model
    runner: Any = engine._runner
    reachable_bytes = reachable(runner.model)
    engine.close()
    assert model_bytes <= reachable_bytes <= 1.01 * model_bytes


def test_mistral_7b_with_three_adapters_takes_seven_percent_more_than_its_base() -> None:
    """In 16 bit as on a GPU, counted on PyTorch's device of tensors without data."""
    config = LoraConfig(r=64, target_modules=list(PROJECTIONS))
    with torch.device("meta"):
        base: Any = MistralForCausalLM(MistralConfig())
        base_bytes = base.half().get_memory_footprint()
        model: Any = get_peft_model(base, config, adapter_name=Role.ACTOR.value)
        for role in (Role.CRITIC, Role.REGENERATOR):
            model.add_adapter(role.value, config)
    count = len(Role)
    base, factors = extract_factors(dict.fromkeys(Role, model.half()))
    del model
    compute = PagedLlama(base, factors, count, torch_ops, 4096)
    del base, factors
    gc.collect()
    assert 1.06 * base_bytes < reachable(compute) < 1.07 * base_bytes


def reachable(compute: Any) -> int:
    """Count the bytes of all tensors that a forward pass can reach."""
    visited: dict[int, Any] = {}
    storage_bytes: dict[int, int] = {}
    todo: list[Any] = [compute]
    while todo:
        item = todo.pop()
        if id(item) in visited or isinstance(item, type | types.ModuleType | types.FunctionType):
            continue
        visited[id(item)] = item
        todo += gc.get_referents(item)
        if isinstance(item, torch.Tensor):
            storage = item.untyped_storage()
            storage_bytes[storage._cdata] = storage.nbytes()
    return sum(storage_bytes.values())
