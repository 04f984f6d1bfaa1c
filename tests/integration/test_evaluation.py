"""The evaluation: texts, tables and errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli.main import main
from jobs import pipeline, settings
from jobs.pipeline import DEFAULT_SYSTEM, MAX_SEED, Role, Sampling, stage_seed
from tests.conftest import model_settings, start_engine
from worker.checkpoints import loading
from worker.checkpoints.discovery import find_checkpoints
from worker.engine.batching.engine import BatchingEngine
from worker.engine.batching.runner_setup import RunnerOptions
from worker.engine.interface import Request
from worker.evaluation import report
from worker.evaluation.forms import Adapters, FullModels
from worker.evaluation.measure import Measurement, measure
from worker.evaluation.task import load
from worker.lora.merge import merge

GREEDY = Sampling(temperature=0, max_output_tokens=12)
QUESTIONS = (
    ("Why?", "why", "short"),
    ("What is the relationship between Earth's atmosphere and gravity?", "air", "long/air"),
    ("Explain how the magnetic field is made.", "iron", "long/iron"),
)


@pytest.fixture(scope="module")
def environ(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    data = tmp_path_factory.mktemp("data")
    return {**model_settings(checkpoint), "HELIXQ_DATA_DIR": str(data)}


@pytest.fixture(scope="module")
def task_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("task") / "task.jsonl"
    rows = ({"question": q, "answer": a, "kind": k} for q, a, k in QUESTIONS)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def full(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Role, Path]:
    """Three full models with the same texts as base and adapters."""
    folder = tmp_path_factory.mktemp("full")
    for role in Role:
        merge(checkpoint / "base", checkpoint / role, folder / role)
    return {role: folder / role for role in Role}


def texts(measurement: Measurement) -> list[tuple[str, str, str]]:
    return [(t.answer, t.critique, t.regeneration) for t in measurement.transcripts]


def test_evaluated_texts_are_the_services(
    checkpoint: Path, environ: dict[str, str], task_file: Path, full: dict[Role, Path]
) -> None:
    """Both forms give, in padded batches, the texts that the engine gives one by one."""
    engine = start_engine(checkpoint)
    expected = []
    for question, _, _ in QUESTIONS:
        outputs: list[str] = []
        for stage in pipeline.stages():
            prompt = pipeline.prompt(stage, DEFAULT_SYSTEM, question, outputs)
            outputs.append(engine.submit(Request(stage.role, prompt, GREEDY)).result().text)
        expected.append(tuple(outputs))
    engine.close()
    checkpoints = find_checkpoints(settings.load(environ))
    for form in (Adapters(checkpoints), FullModels(checkpoints, full)):
        written: list[int] = []
        measured = measure(
            form,
            load(task_file),
            system=DEFAULT_SYSTEM,
            sampling=GREEDY,
            batch=2,
            tick=lambda _, written=written: written.append,  # type: ignore[misc]  # a default
        )
        assert texts(measured) == expected
        assert sum(written) == 9
        assert list(measured.counts) == ["all", "short", "long", "long/air", "long/iron"]
    assert measured.weight_bytes > 2 * Adapters(checkpoints).weight_bytes()


def test_a_text_does_not_depend_on_a_longer_prompt_beside_it(environ: dict[str, str]) -> None:
    """The long prompt leaves room for two tokens in the context, the short one for all it may have."""
    checkpoints = find_checkpoints(settings.load(environ))
    prompts = ["Why?", "Why? " * 20]
    length = len(checkpoints.tokenizer.encode(prompts[1]))
    form = Adapters(replace(checkpoints, context=length + 2))

    def write(prompts: list[str], batch: int) -> list[str]:
        samplings = [GREEDY] * len(prompts)
        return form.write(Role.ACTOR, prompts, samplings, batch, lambda _: None)

    alone = write(prompts, 1)
    assert len(checkpoints.tokenizer.encode(alone[0])) > 2
    assert write(prompts, 2) == alone


def test_sampled_texts_do_not_depend_on_the_batch(environ: dict[str, str], task_file: Path) -> None:
    """They are those of the batching engine, with a seed for each question."""
    checkpoints = find_checkpoints(settings.load(environ))
    sampling = Sampling(temperature=1.5, top_k=0, max_output_tokens=8, seed=MAX_SEED)
    form = Adapters(checkpoints)

    def measured(batch: int) -> list[tuple[str, str, str]]:
        return texts(
            measure(
                form,
                load(task_file),
                system=DEFAULT_SYSTEM,
                sampling=sampling,
                batch=batch,
                tick=lambda _: lambda _: None,
            )
        )

    alone = measured(1)
    assert measured(3) == measured(2) == alone
    assert len(set(alone)) == len(alone)
    engine = BatchingEngine.from_models(
        loading.load(checkpoints).models,
        checkpoints.tokenizer,
        RunnerOptions(max_model_len=checkpoints.context, max_num_seqs=2),
    )
    for (question, _, _), seed, written in zip(QUESTIONS, (MAX_SEED, 0, 1), alone, strict=True):
        outputs: list[str] = []
        for stage in pipeline.stages():
            prompt = pipeline.prompt(stage, DEFAULT_SYSTEM, question, outputs)
            drawn = replace(sampling, seed=stage_seed(seed, stage.index))
            outputs.append(engine.submit(Request(stage.role, prompt, drawn)).result().text)
        assert tuple(outputs) == written
    engine.close()


def run(environ: dict[str, str], *arguments: object, status: int = 0) -> Any:
    result = CliRunner().invoke(main, ["eval", *map(str, arguments)], env=environ)
    assert result.exit_code == status, result.output
    return result


def test_the_command_measures_both_forms_and_ranks(
    environ: dict[str, str], task_file: Path, full: dict[Role, Path], tmp_path: Path
) -> None:
    files = [tmp_path / name for name in ("out.md", "out.svg", "out.jsonl")]
    files[0].write_text(f"# Title\n\n{report.BEGIN}\nold\n{report.END}\n\nThe end.\n")
    arguments = (
        *(task_file, "--full", ",".join(f"{role}={full[role]}" for role in Role)),
        *("--ranks", "4,1", "--max-output-tokens", 8, "--answer", r"\w+", "--approval", "the"),
        *("--markdown", files[0], "--plot", files[1], "--transcripts", files[2]),
    )
    printed = json.loads(run(environ, *arguments, "--json").stdout)
    counts = printed["adapters"]["counts"]
    assert counts["all"]["actor"]["total"] == 3
    assert {kind: c["actor"]["total"] for kind, c in counts.items()} == {
        "all": 3,
        "short": 1,
        "long": 2,
        "long/air": 1,
        "long/iron": 1,
    }
    assert counts == printed["full"]["counts"], "merged models give the same texts"
    assert printed["adapters_against_full"]["difference"] == 0
    assert printed["full"]["weight_bytes"] > 2 * printed["adapters"]["weight_bytes"]
    assert list(printed["ranks"]) == ["1", "4"]

    text = files[0].read_text()
    assert text.startswith("# Title\n")
    assert text.endswith("The end.\n")
    assert "old" not in text
    assert "| all (3) | base + 3 adapters |" in text
    assert "| long (2) | base + 3 adapters |" in text
    assert "| long, iron | 0 of 1 (" in text, "detailed kinds have a separate table"
    assert "| rank | MB of weights |" in text
    assert "</svg>" in files[1].read_text()
    lines = [json.loads(line) for line in files[2].read_text().splitlines()]
    assert len(lines) == 6
    assert {line["form"] for line in lines} == {"adapters", "full"}
    assert all(line["actor"] and line["question"] for line in lines)


def test_a_limit_keeps_all_kinds(environ: dict[str, str], task_file: Path) -> None:
    printed = json.loads(
        run(environ, task_file, "--limit", 2, "--max-output-tokens", 2, "--json").stdout
    )
    counts = printed["adapters"]["counts"]
    assert (counts["all"]["actor"]["total"], set(counts)) == (
        2,
        {"all", "short", "long", "long/air"},
    )
    assert counts["all"]["critic"] is None, "there is no pattern for verdicts"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/such/file"], "No such file"),
        (["--ranks", "4"], "name them with --full"),
        (["--plot", "/no/such/folder/x.svg"], "cannot be written"),
        (["--plot", "x.txt"], "should end in one of .svg, .png, .pdf"),
        (["--answer", "("], "is not a regular expression"),
    ],
)
def test_bad_input_is_one_sentence(
    environ: dict[str, str], task_file: Path, arguments: list[str], message: str
) -> None:
    first = [] if arguments[0].startswith("/") else [task_file]
    result = run(environ, *first, *arguments, status=1)
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--full", "actor=/nowhere"], "critic, regenerator"),
        (["--ranks", "four"], "is not a list of numbers"),
        (["--ranks", "0"], "a rank must be at least 1"),
        (["--temperature", "3"], "not in the range"),
    ],
)
def test_bad_options_are_explained(
    environ: dict[str, str], arguments: list[str], message: str
) -> None:
    assert message in run(environ, *arguments, status=2).stderr


def test_a_question_longer_than_the_context(environ: dict[str, str], task_file: Path) -> None:
    result = run({**environ, "HELIXQ_MAX_CONTEXT": "16"}, task_file, status=1)
    assert "leaves no room in the model's context of 16" in result.stderr
