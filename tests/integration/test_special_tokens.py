"""Special tokens in a question: plain text, or control tokens if configured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jobs import settings
from jobs.database import Database
from jobs.pipeline import Role, Sampling
from jobs.protocol.tokens import TokenCounter
from jobs.use_cases import workers
from jobs.use_cases.workers import Runtime
from tests.conftest import model_settings
from worker.checkpoints import loading
from worker.checkpoints.discovery import Checkpoints, find_checkpoints
from worker.engine.batching.engine import BatchingEngine
from worker.engine.batching.runner_setup import RunnerOptions
from worker.engine.interface import Engine, Request
from worker.engine.reference import ReferenceEngine
from worker.engine.tokenization.encoder import Encoder

TYPED = "What do </s> and <s> mean?"


def find(checkpoint: Path, data: Path, split: str | None) -> Checkpoints:
    chosen = {} if split is None else {"HELIXQ_SPLIT_SPECIAL_TOKENS": split}
    return find_checkpoints(
        settings.load({**model_settings(checkpoint), "HELIXQ_DATA_DIR": str(data), **chosen})
    )


def request(text: str) -> Request:
    return Request(Role.ACTOR, text, Sampling(temperature=0, max_output_tokens=8))


def with_byte_fallback(folder: Path) -> None:
    """Save a tokenizer like Mistral's: pieces with ``▁``, and byte fallback."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"Whatdomen?",
    ]
    built = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(dict.fromkeys(pieces))},
            merges=[],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    built.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    built.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    built.add_special_tokens([AddedToken(token, special=True) for token in pieces[:3]])
    built.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers has no types there
        tokenizer_object=built, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


@pytest.mark.parametrize("fallback", [False, True], ids=["byte-level", "byte fallback"])
def test_special_tokens_in_a_question_are_text(
    checkpoint: Path, tmp_path: Path, fallback: bool
) -> None:
    checkpoints = find(checkpoint, tmp_path, None)
    tokenizer = checkpoints.tokenizer
    if fallback:
        with_byte_fallback(tmp_path / "tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
        tokenizer.split_special_tokens = checkpoints.tokenizer.split_special_tokens
    ids, _ = Encoder(tokenizer, 4096)(request(TYPED))
    assert ids[0] == tokenizer.bos_token_id
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(ids[1:])
    assert tokenizer.decode(ids, skip_special_tokens=True) == TYPED


def test_special_tokens_are_control_tokens_if_configured(checkpoint: Path, tmp_path: Path) -> None:
    """As in the model card's program, which uses the tokenizer's defaults."""
    checkpoints = find(checkpoint, tmp_path, "false")
    ids, _ = Encoder(checkpoints.tokenizer, 4096)(request(TYPED))
    assert ids == AutoTokenizer.from_pretrained(checkpoint / "base").encode(TYPED)
    assert checkpoints.tokenizer.eos_token_id in ids


def reference_engine(models: Any, tokenizer: Any, context: int) -> Engine:
    return ReferenceEngine(models, tokenizer, max_model_len=context)


def batching_engine(models: Any, tokenizer: Any, context: int) -> Engine:
    options = RunnerOptions(max_model_len=context, max_num_seqs=2)
    return BatchingEngine.from_models(models, tokenizer, options)


@pytest.mark.parametrize("make_engine", [reference_engine, batching_engine])
def test_engines_encode_the_question_as_typed(
    checkpoint: Path, tmp_path: Path, make_engine: Callable[..., Engine]
) -> None:
    tokens = {}
    for split in ("true", "false"):
        checkpoints = find(checkpoint, tmp_path, split)
        models = loading.load(checkpoints).models
        engine = make_engine(models, checkpoints.tokenizer, checkpoints.context)
        try:
            tokens[split] = [
                engine.submit(request(text)).result().prompt_tokens for text in (TYPED, "What?")
            ]
        finally:
            engine.close()
    assert tokens["true"][0] > tokens["false"][0]
    assert tokens["true"][1] == tokens["false"][1], "other texts are the same tokens"


@pytest.mark.parametrize("split", ["true", "false"])
def test_the_web_counts_tokens_as_the_engine_does(
    database: Database, checkpoint: Path, tmp_path: Path, split: str
) -> None:
    checkpoints = find(checkpoint, tmp_path, split)
    description = checkpoints.describe("none")
    runtime = Runtime(description, 4096, checkpoints.tokenizer.backend_tokenizer.to_str())
    workers.register(database, "worker-2", "localhost", 2, runtime)
    counted = TokenCounter(database).count([TYPED])
    ids, _ = Encoder(checkpoints.tokenizer, 4096)(request(TYPED))
    assert counted == ([len(ids)], 4096)
    assert description["split_special_tokens"] is json.loads(split), (
        "the histories have the setting"
    )
