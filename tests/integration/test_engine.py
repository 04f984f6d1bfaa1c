"""The reference engine gives the texts of the model card's program."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from jobs import pipeline
from jobs.pipeline import DEFAULT_SYSTEM, Role, Sampling
from tests.conftest import start_engine
from tests.joining import join
from worker.engine.interface import (
    ContextExceededError,
    EngineError,
    EngineStats,
    FinishReason,
    Request,
)
from worker.engine.reference import ReferenceEngine
from worker.engine.tokenization.detokenizer import Detokenizer
from worker.engine.tokenization.encoder import Encoder

LONG = Sampling(max_output_tokens=4000)
QUESTION = "What is the relationship between Earth's atmosphere, magnetic field and gravity?"


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Iterator[ReferenceEngine]:
    engine = start_engine(checkpoint)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def endless_engine(endless: Path) -> Iterator[ReferenceEngine]:
    engine = start_engine(endless)
    yield engine
    engine.close()


class Card:
    """The model card's program, with its `generate_text` written out."""

    def __init__(self, checkpoint: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint / "base")
        base = AutoModelForCausalLM.from_pretrained(checkpoint / "base", dtype=torch.float32)
        self.model = PeftModel.from_pretrained(base, str(checkpoint / "actor"), "actor")
        for role in ("critic", "regenerator"):
            self.model.load_adapter(str(checkpoint / role), adapter_name=role)

    def generate_text(self, instruction: str, adapter: str) -> str:
        self.model.set_adapter(adapter)
        tokens = self.tokenizer.encode(instruction)
        tokens = torch.LongTensor(tokens).unsqueeze(0)
        length = len(tokens[0])
        with torch.no_grad():
            rest = self.model.generate(  # type: ignore[no-untyped-call]  # peft has no types there
                input_ids=tokens,
                max_length=length + 1024,
                use_cache=True,
                do_sample=True,
                top_p=1.0,
                temperature=0.75,
                top_k=50,
                num_return_sequences=1,
                pad_token_id=self.tokenizer.eos_token_id,
            )
        return str(self.tokenizer.decode(rest[0][length:], skip_special_tokens=True))


@pytest.fixture(scope="module")
def card(checkpoint: Path) -> Card:
    return Card(checkpoint)


@pytest.mark.parametrize("seed", range(4))
def test_the_whole_pipeline_gives_the_cards_texts(
    engine: ReferenceEngine, card: Card, seed: int
) -> None:
    texts: list[str] = []
    cards: list[str] = []
    for stage in pipeline.stages():
        sampling = Sampling(seed=pipeline.stage_seed(seed, stage.index))
        prompt = pipeline.prompt(stage, DEFAULT_SYSTEM, QUESTION, texts)
        generation = engine.submit(Request(stage.role, prompt, sampling))
        streamed = list(generation)
        completion = generation.result()
        assert "".join(streamed) == completion.text
        assert streamed == completion.deltas
        texts.append(completion.text)
        torch.manual_seed(sampling.seed)
        cards.append(card.generate_text(prompt, stage.role))
    assert texts == cards
    assert len(set(texts)) > 1, "the roles differ"


def test_what_runs_and_what_waits_is_counted(endless: Path) -> None:
    engine = start_engine(endless)
    assert engine.stats() == EngineStats(num_running=0, num_waiting=0)
    first, second = (engine.submit(Request(Role.ACTOR, "Why", LONG)) for _ in range(2))
    next(iter(first))
    assert engine.stats() == EngineStats(num_running=1, num_waiting=1)
    first.cancel()
    next(iter(second))
    assert engine.stats() == EngineStats(num_running=1, num_waiting=0)
    second.cancel()
    assert second.result().first_token_at is not None
    assert engine.stats() == EngineStats(num_running=0, num_waiting=0)
    engine.close()


@pytest.mark.parametrize("role", list(Role))
def test_temperature_zero_is_greedy(engine: ReferenceEngine, card: Card, role: Role) -> None:
    request = Request(role, "Why is the sky", Sampling(temperature=0, max_output_tokens=12))
    completion = engine.submit(request).result()
    assert engine.submit(request).result().text == completion.text
    ids = card.tokenizer.encode(request.prompt)
    card.model.set_adapter(role)
    for _ in range(completion.output_tokens):
        with torch.no_grad():
            logits = card.model(input_ids=torch.tensor([ids])).logits
        ids.append(int(logits[0, -1].argmax()))
    new = ids[completion.prompt_tokens :]
    assert card.tokenizer.decode(new, skip_special_tokens=True) == completion.text


def test_a_tiny_temperature_is_greedy_too(engine: ReferenceEngine) -> None:
    texts = {
        engine.submit(Request(Role.ACTOR, QUESTION, Sampling(temperature=t, max_output_tokens=20)))
        .result()
        .text
        for t in (0, 1e-300, 1e-8)
    }
    assert len(texts) == 1


def test_a_limit_cuts_the_text(engine: ReferenceEngine) -> None:
    request = Request(Role.ACTOR, QUESTION, Sampling(seed=3, max_output_tokens=2))
    completion = engine.submit(request).result()
    assert completion.finish_reason is FinishReason.LENGTH
    assert completion.output_tokens == completion.max_output_tokens == 2


def test_the_eos_token_is_counted_but_not_in_the_text(engine: ReferenceEngine) -> None:
    completion = engine.submit(Request(Role.ACTOR, QUESTION, Sampling(seed=1))).result()
    assert completion.finish_reason is FinishReason.STOP
    assert "</s>" not in completion.text


def test_cancel_stops_within_a_step(endless_engine: ReferenceEngine) -> None:
    generation = endless_engine.submit(Request(Role.ACTOR, "Go on", LONG))
    first = next(iter(generation))
    generation.cancel()
    completion = generation.result(timeout=30)
    assert completion.finish_reason is FinishReason.CANCELLED
    assert completion.text.startswith(first)
    assert 0 < completion.output_tokens < LONG.max_output_tokens


def test_a_request_cancelled_while_waiting_takes_no_step(endless_engine: ReferenceEngine) -> None:
    running = endless_engine.submit(Request(Role.ACTOR, "Go on", LONG))
    waiting = endless_engine.submit(Request(Role.CRITIC, "Why", LONG))
    waiting.cancel()
    running.cancel()
    completion = waiting.result(timeout=30)
    assert completion.finish_reason is FinishReason.CANCELLED
    assert (completion.text, completion.output_tokens) == ("", 0)
    assert completion.first_token_at is None


def test_a_deadline_stops_the_text(endless_engine: ReferenceEngine) -> None:
    for seconds in (0.2, 2, 20):  # A busy machine may not even begin in a fraction of a second.
        soon = Request(Role.ACTOR, "Go on", LONG, deadline=time.monotonic() + seconds)
        completion = endless_engine.submit(soon).result(timeout=30 + seconds)
        assert completion.finish_reason is FinishReason.DEADLINE
        if completion.output_tokens:
            break
    assert 0 < completion.output_tokens < LONG.max_output_tokens
    past = Request(Role.ACTOR, "Go on", LONG, deadline=time.monotonic() - 1)
    assert endless_engine.submit(past).result(timeout=30).output_tokens == 0


def test_a_prompt_that_fills_the_context_is_refused(engine: ReferenceEngine) -> None:
    with pytest.raises(ContextExceededError, match="no room in the model's context of 4096"):
        engine.submit(Request(Role.ACTOR, "word " * 4096, Sampling()))


def test_the_context_shortens_the_limit(engine: ReferenceEngine) -> None:
    prompt = "made " * 4080
    completion = engine.submit(Request(Role.ACTOR, prompt, Sampling(seed=1))).result()
    assert completion.max_output_tokens == engine.max_model_len - completion.prompt_tokens < 1024


def test_a_request_that_raises_fails_alone(
    engine: ReferenceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A fake fault: real ones, of a driver or of memory, cannot be caused.
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine._models["actor"], "generate", broken)
        failed = engine.submit(Request(Role.ACTOR, QUESTION, Sampling()))
        with pytest.raises(EngineError, match="RuntimeError: out of memory"):
            failed.result(timeout=30)
    sound = engine.submit(Request(Role.ACTOR, QUESTION, Sampling(seed=1, max_output_tokens=3)))
    assert sound.result(timeout=30).output_tokens > 0


def test_many_threads_may_submit(engine: ReferenceEngine) -> None:
    texts: dict[int, str] = {}

    def ask(seed: int) -> None:
        request = Request(Role.ACTOR, QUESTION, Sampling(seed=seed % 2, max_output_tokens=5))
        texts[seed] = engine.submit(request).result().text

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        join(thread)
    assert len({texts[seed] for seed in range(0, 8, 2)}) == 1
    assert len({texts[seed] for seed in range(1, 8, 2)}) == 1


@pytest.mark.parametrize(
    "text",
    [
        "plain words",
        " leading and trailing ",
        "Ünïcödé, 漢字, 🧬🇪🇺 and e\u0301",
        "NUL \0 and line\nbreaks\r\n\ttabs",
        "\ufffd a replacement character of its own \ufffd",
    ],
)
def test_deltas_add_up_to_the_text(checkpoint: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "base")
    detokenizer = Detokenizer(tokenizer)
    deltas = [detokenizer.push(token) for token in tokenizer.encode(text)[1:]]
    full_text, rest = detokenizer.finish()
    assert full_text == text
    assert "".join(deltas) + rest == text
    for delta in deltas:
        delta.encode()  # no half characters


def test_incomplete_characters_are_held_back(checkpoint: Path) -> None:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(checkpoint / "base")
    ids = tokenizer.encode("🧬")[1:]
    assert len(ids) == 4
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(token) for token in ids] == ["", "", "", "🧬"]
    detokenizer = Detokenizer(tokenizer)
    for token in ids[:2]:
        detokenizer.push(token)
    text, rest = detokenizer.finish()
    assert text == rest == tokenizer.decode(ids[:2])


def test_byte_tokens_are_held_back_until_they_decode() -> None:
    """Byte-fallback vocabularies decode consecutive bytes together."""
    vocabulary = {"<unk>": 0, "x": 1} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
    backend = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=backend)  # type: ignore[no-untyped-call]  # transformers has no types there
    euro = [2 + byte for byte in "€".encode()]
    for last, expected in ([1], "x€x"), ([2 + 0xFF, 1], "x\ufffd\ufffd\ufffd\ufffdx"):
        detokenizer = Detokenizer(tokenizer)
        deltas = [detokenizer.push(token) for token in [1, *euro, *last]]
        text, rest = detokenizer.finish()
        assert "".join(deltas) + rest == text == expected


def test_an_empty_prompt_is_refused(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "base", add_bos_token=False)
    encode = Encoder(tokenizer, 64)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()  # it adds no token
    with pytest.raises(EngineError, match="the critic's prompt is empty"):
        encode(Request(Role.CRITIC, "", Sampling()))
