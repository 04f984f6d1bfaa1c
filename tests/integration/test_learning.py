"""Exports are read by `datasets`, and TRL's trainers take them as they are."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from cli.main import main
from jobs import pipeline
from jobs.database import Database
from jobs.enums import Shape
from jobs.formats.writing import FileKind, Format, writing
from jobs.pipeline import Role
from jobs.protocol.shapes import COLUMNS, rows
from jobs.search.filters import Filters
from jobs.settings import DEMO_CHECKPOINT
from jobs.use_cases import exporting, reviewing, stages, workers
from jobs.use_cases.reviewing import NewReview
from tests.conftest import RUNTIME, WORKER, give_schema
from tests.integration.rows import OUTPUT, claim, submit
from tests.integration.sealed import seal

#: The libraries warn of each other's versions.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an export of every shape in every format."""
    folder = tmp_path_factory.mktemp("exports")
    database = Database(f"sqlite:///{folder / 'jobs.sqlite3'}")
    give_schema(database.engine)
    workers.register(database, WORKER, "localhost", 1, RUNTIME)
    for number in range(4):
        texts = (
            f"52 * 7{number} = 3180.",
            f" By columns:\n2*{number}, so it is wrong.\u2028é\N{GRINNING FACE}",
            f"Corrected by columns: 52 * 7{number} = {52 * (70 + number)}.",
        )
        job = submit(
            database,
            question=f"What is 52 * 7{number}?",
            # Types that differ from row to row.
            metadata={"team": "blue"} if number % 2 else {},
            options={"user": "me"} if number % 2 else {"top_logprobs": 0},
            input_items=[{"role": "user", "content": "Why?" if number % 2 else [{"text": "Why?"}]}],
        )
        for index, text in enumerate(texts):
            output = replace(OUTPUT, text=text, delta_lengths=[len(text)])
            stages.record(database, claim(database, job, index), output)
        review = NewReview(regeneration=1, note="é" if number % 2 else None)
        reviewing.add(database, None, job.id, review, reviewer="ann")
    seal(database)
    for shape in Shape:
        for format_ in Format:
            pages = exporting.pages(database, None, Filters(), with_proofs=True)
            made = ([row for each in page for row in rows(shape, each)] for page in pages)
            kind = FileKind(format_)
            data = b"".join(writing(kind, COLUMNS[shape])(made))
            (folder / f"{shape}{kind.suffix}").write_bytes(data)
    yield folder
    database.close()


def load(file: Path) -> Any:
    """Load a file as `datasets` does it by itself."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from datasets import load_dataset

    builder = {".jsonl": "json"}.get(file.suffix, file.suffix.removeprefix("."))
    cache = file.parent / "cache"
    return load_dataset(builder, data_files=str(file), split="train", cache_dir=str(cache))


@pytest.mark.parametrize("format_", Format)
@pytest.mark.parametrize("shape", Shape)
def test_datasets_loads_it(exports: Path, shape: Shape, format_: Format) -> None:
    told = [json.loads(line) for line in (exports / f"{shape}.jsonl").open()]
    loaded = load(exports / f"{shape}.{format_}")
    assert loaded.column_names == list(COLUMNS[shape])
    assert len(loaded) == len(told)
    for row, expected in zip(loaded, told, strict=True):
        for name, kind in COLUMNS[shape].items():
            if kind != "json":
                assert row[name] == expected[name], name
            elif format_ is Format.JSONL:
                assert without_nulls(row[name]) == without_nulls(expected[name]), name
            else:
                assert json.loads(row[name] or "null") == expected[name], name


def without_nulls(value: Any) -> Any:
    """Return a value without what `datasets` adds: each object has the names of all."""
    if isinstance(value, dict):
        return {n: without_nulls(v) for n, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


@pytest.fixture
def learner() -> Any:
    """The miniature with its actor's adapter, and its tokenizer."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = DEMO_CHECKPOINT / "base"
    plain = AutoModelForCausalLM.from_pretrained(base)
    model = PeftModel.from_pretrained(plain, DEMO_CHECKPOINT / Role.ACTOR, is_trainable=True)
    return model, AutoTokenizer.from_pretrained(base)


#: One step, without anything that is written or reported.
ONE_STEP: dict[str, Any] = {
    "max_steps": 1,
    "per_device_train_batch_size": 2,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
}


@pytest.mark.parametrize("format_", [Format.JSONL, Format.PARQUET])
def test_a_trainer_of_completions_takes_it(
    exports: Path, learner: Any, tmp_path: Path, format_: Format
) -> None:
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = learner
    rows = load(exports / f"sft.{format_}")
    trainer: Any = SFTTrainer(
        model,
        SFTConfig(str(tmp_path), **ONE_STEP),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    # The tokens are those that the engine has: the prompt's, then the text's, and the end.
    first = trainer.train_dataset[0]
    text = rows[0]["prompt"] + rows[0]["completion"]
    assert first["input_ids"] == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert trainer.train().global_step == 1


@pytest.mark.parametrize("format_", [Format.JSONL, Format.PARQUET])
def test_a_trainer_of_preferences_takes_it(
    exports: Path, learner: Any, tmp_path: Path, format_: Format
) -> None:
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = learner
    rows = load(exports / f"preference.{format_}")
    assert rows[0]["prompt"] == pipeline.prompt(
        pipeline.stages()[0], "Be brief.", "What is 52 * 70?", []
    )
    trainer = DPOTrainer(
        model,
        args=DPOConfig(str(tmp_path), **ONE_STEP),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    result = trainer.train()
    assert result.global_step == 1
    assert 0 < result.training_loss < 1


DOCUMENT = Path(__file__).parents[2] / "docs" / "learning.md"


def test_the_commands_of_the_document_make_adapters_and_evaluate_them(
    exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = DOCUMENT.read_text()
    asking, training = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    compile(asking, "ask.py", "exec")
    (tmp_path / "pairs.parquet").write_bytes((exports / "preference.parquet").read_bytes())
    (tmp_path / "demo").symlink_to(DOCUMENT.parents[1] / "demo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    before = evaluate(text, "Before")
    exec(compile(training, "train.py", "exec"), {})  # noqa: S102 (our own)
    for role in Role:
        shipped = load_file(DEMO_CHECKPOINT / role / "adapter_model.safetensors")
        learned = load_file(tmp_path / "learned" / role / "adapter_model.safetensors")
        assert shipped.keys() == learned.keys()
        assert any(not torch.equal(shipped[name], learned[name]) for name in shipped)
    after = evaluate(text, "After")
    assert [each["question"] for each in after] == [each["question"] for each in before]


def evaluate(text: str, heading: str) -> list[dict[str, Any]]:
    """Run the commands below a heading on two questions; return what `helixq eval` wrote of them."""
    found = re.search(rf"^## {heading}\n.*?^```sh\n(.*?)^```$", text, re.M | re.S)
    assert found
    environ: dict[str, str] = {}
    for line in found[1].splitlines():
        program, *arguments = shlex.split(line)
        if program == "export":
            name, _, value = arguments[0].partition("=")
            environ[name] = value
        elif program == ".venv/bin/helixq":
            few = ["--limit", "2", "--max-output-tokens", "24", "--transcripts", f"{heading}.jsonl"]
            ran = CliRunner().invoke(main, [*arguments, *few], env=environ)
            assert ran.exit_code == 0, ran.output
            for role in ("actor", "regenerator"):
                assert role in ran.output
        else:
            subprocess.run(["/bin/sh", "-ec", line], check=True)
    return [json.loads(line) for line in Path(f"{heading}.jsonl").open()]
