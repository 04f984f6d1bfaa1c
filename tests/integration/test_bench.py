"""The benchmarks run and count correctly. Their speed is not tested."""

from __future__ import annotations

import itertools
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import torch
from click.testing import CliRunner

from cli.bench import measure_service, processes
from cli.main import main
from jobs.pipeline import Sampling
from jobs.program import PROGRAM
from jobs.settings import DEMO_CHECKPOINT
from tests import fork_client, forked, servers
from tests.acceptance.conftest import running
from tests.servers import PATIENCE
from tests.vllm import VLLM
from worker.bench import engine, lora, models
from worker.bench.lora import Extractor, Sizes
from worker.lora import LoraError

SMALL = Sizes(hidden=64, intermediate=160, heads=4, kv_heads=2)


@pytest.fixture(scope="module")
def client(
    socket_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx2.Client]:
    """A client of a service with the demo's model, for the benchmarks that ask it questions."""
    database = f"sqlite:///{tmp_path_factory.mktemp('db') / 'jobs.sqlite3'}"
    with (
        running(DEMO_CHECKPOINT, database, socket_folder / "bench") as service,
        service.http() as client,
    ):
        yield client


@pytest.fixture
def started(client: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the place of `helixq up`, whose start takes longer than the questions: `bench batch` starts it."""
    monkeypatch.setattr(measure_service, "service", lambda *_: nullcontext(client))


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the processes that a benchmark starts: their imports would take longer than what it measures."""
    monkeypatch.setattr(processes, "subprocess", forked)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have `helixq up` use an engine elsewhere: its worker does not import PyTorch, which takes longer than the rest."""
    vllm, run = VLLM(), processes.run
    monkeypatch.setattr(
        processes,
        "run",
        lambda command, settings, environ, **options: run(
            command, settings, {**environ, **vllm.settings()}, **options
        ),
    )
    yield
    vllm.stop()


def bench(*options: str) -> Any:
    result = CliRunner().invoke(main, ["bench", *options, "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def fork(extractor: Extractor) -> Extractor:
    """Return the same program, forked."""
    forked.server()
    client = [sys.executable, "-IS", fork_client.__file__, "-m", "cli"]
    return Extractor(
        extractor.name, lambda *paths: [*client, *extractor.command(*paths)[len(PROGRAM) :]]
    )


def test_extractors_are_compared_by_their_saved_adapters(tmp_path: Path) -> None:
    extractors = [fork(lora.helixq_extractor("--exact")), fork(lora.helixq_extractor())]
    exact, quick = lora.run(tmp_path, extractors, rank=4, sizes=SMALL)
    assert len(exact.errors) == len(quick.errors) == 7
    assert 0 < exact.error <= quick.error * (1 + 1e-6)
    assert quick.error <= exact.error * 1.002, "within its tolerance, and half precision"


def test_a_program_that_fails_is_named(tmp_path: Path) -> None:
    failing = Extractor("false", lambda *_: ["false"])
    with pytest.raises(LoraError, match="false ended with status 1"):
        lora.run(tmp_path / "a", [failing], rank=4, sizes=SMALL)
    missing = Extractor("nothing", lambda *_: ["/does/not/exist"])
    with pytest.raises(LoraError, match="/does/not/exist cannot be started"):
        lora.run(tmp_path / "b", [missing], rank=4, sizes=SMALL)


def test_a_missing_baseline_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/does/not/exist")
    result = CliRunner().invoke(main, ["bench", "lora"])
    assert result.exit_code == 1
    assert "mergekit-extract-lora is not on the PATH" in result.stderr


def test_engines_are_compared_on_whole_jobs() -> None:
    options = ["--jobs", "4", "--reference-jobs", "2", "--slots", "1,4"]
    results = bench(*options, "--max-output-tokens", "8")["results"]
    names = [(r["engine"], r["at_once"], r["jobs"]) for r in results]
    assert names == [
        ("reference", 1, 2),
        ("batching", 1, 4),
        ("batching", 4, 4),
        ("batching, no drafts", 1, 4),
    ]
    for r in results:
        assert 0 < r["tokens"] <= r["jobs"] * 3 * 8
        assert 0 < r["share_of_limit"] < 1
    assert results[3]["tokens"] == results[1]["tokens"], "the same texts"
    assert results[3]["steps"] >= results[1]["steps"]
    # The system prompt of all jobs is computed once.
    assert results[2]["computed"] < results[2]["prompt_tokens"]


def test_the_base_without_adapters_is_measured() -> None:
    results = engine.run(
        models.Model.of(DEMO_CHECKPOINT),
        questions=["What is 1 + 1?"],
        reference_jobs=1,
        slots=[2],
        sampling=Sampling(max_output_tokens=4),
        context=512,
        dtype=torch.float32,
        device=torch.device("cpu"),
        bare=True,
    )
    assert [r.engine for r in results] == ["reference", "batching", "batching, no adapters"]
    assert all(r.tokens for r in results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_synthetic_model_has_adapters_that_differ(tmp_path: Path, dtype: torch.dtype) -> None:
    tokenizer = DEMO_CHECKPOINT / "base"
    checkpoints = models.synthetic(tmp_path, tokenizer, hidden=128, layers=1, rank=2, dtype=dtype)
    loaded: Any = checkpoints.load(dtype, torch.device("cpu"))
    assert {p.dtype for model in loaded.values() for p in model.parameters()} == {dtype}
    scores = [model(torch.tensor([[1, 5, 9]])).logits for model in loaded.values()]
    with loaded["actor"].disable_adapter():
        scores.append(loaded["actor"](torch.tensor([[1, 5, 9]])).logits)
    assert all(not torch.equal(*pair) for pair in itertools.combinations(scores, 2))


@pytest.mark.usefixtures("started")
def test_the_service_is_measured_from_request_to_row() -> None:
    options = ["--jobs", "4", "--reference-jobs", "1", "--at-once", "4"]
    reference, service = bench("service", *options, "--max-output-tokens", "8")["results"]
    assert reference["program"] == "reference engine alone"
    assert service["program"] == "service"
    for program in (reference, service):
        tokens_a_job = program["tokens_a_second"] * 3600 / program["jobs_an_hour"]
        assert 3 <= round(tokens_a_job, 6) <= 3 * 8, "of all three stages"


@pytest.mark.usefixtures("elsewhere", "forks")
def test_accepting_a_batch_is_measured() -> None:
    batch = bench("batch", "--lines", "300", "--line-bytes", "1000")["batch"]
    assert batch["lines"] == 300
    assert 300_000 <= batch["bytes"] < 330_000, "each has at least so many"
    assert min(batch["upload"], batch["validation"]) > 0
    assert max(batch["web_growth"], batch["worker_growth"]) < 100 << 20


@pytest.mark.usefixtures("started")
def test_the_services_overhead_is_measured() -> None:
    result = bench("idle", "--jobs", "2", "--max-output-tokens", "2", "--old", "50")
    assert result["jobs"] == 2
    seconds = result["seconds"]
    # The median of two is their mean, and so is the difference's.
    added = seconds["service"] - seconds["engine_alone"]
    assert seconds["machinery"] == pytest.approx(added)


@pytest.mark.usefixtures("forks")
def test_webs_are_measured_while_jobs_wait_on_both_databases() -> None:
    options = ("--webs", "1", "--waiting", "500", "--streams", "5", "--seconds", "0.2")
    results = bench("api", *options)["results"]
    assert [r["database"] for r in results] == ["SQLite", "PostgreSQL"]
    for r in results:
        assert r["waiting"] >= 500
        for what in ("accept", "poll"):
            assert r[f"{what}s"] > 0
            assert 0 < r[f"{what}_median"] <= r[f"{what}_late"]
            assert r[f"{what}_cost"] > 0
        assert r["messages"] == 2
        assert r["stream_share"] > 0


@pytest.mark.usefixtures("forks")
def test_workers_are_measured_with_simulated_gpus_on_both_databases(tmp_path: Path) -> None:
    plot = tmp_path / "workers.svg"
    options = ("--workers", "1", "--slots", "4", "--text-seconds", "0.2", "--seconds", "1")
    results = bench("workers", *options, "--plot", str(plot))["results"]
    assert [(r["database"], r["engine"]) for r in results] == [
        ("SQLite", "simulated"),
        ("PostgreSQL", "simulated"),
    ]
    for r in results:
        assert r["possible"] == pytest.approx(4 / 0.6 * 3600)
        assert 0 < r["jobs_an_hour"] < 2 * r["possible"]
        assert min(r["worker_cost"], r["redis_cost"]) > 0
    assert plot.read_text().startswith("<?xml")


@pytest.mark.usefixtures("forks")
def test_readers_are_measured_while_text_is_published() -> None:
    results = bench("readers", "--readers", "3", "--pieces", "20", "--seconds", "0.3")["results"]
    assert [(r["readers"], r["jobs"], r["before"]) for r in results] == [
        (1, 1, 0),
        (3, 3, 0),
        (3, 1, 0),
        (3, 1, 20),
        (100, 100, 0),
        (100, 1, 0),
    ]
    assert [r["pages"] for r in results] == [False, False, False, False, True, True]
    for r in results:
        assert r["messages"] == 3 * r["readers"], "each reader received each delta"
        assert 0 < r["median_delay"] <= r["late_delay"]


def test_sigterm_ends_a_benchmark_with_its_processes_and_its_folder(tmp_path: Path) -> None:
    """Where no path in TMPDIR is short enough for a socket."""
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    options = ("--readers", "1", "--pieces", "0", "--seconds", "600")
    bench = servers.forked("bench", "readers", *options, environ={"TMPDIR": str(folder)})
    try:
        bench.wait_for("1 reader of 1 job")
        children = psutil.Process(bench.popen.pid).children(recursive=True)
        assert len(children) == 2, "Redis and a web"
        assert list(folder.glob("helixq-bench-*"))
        bench.signal(signal.SIGTERM)
        assert bench.wait() == 130, bench.output
        assert "Traceback" not in bench.output
        assert psutil.wait_procs(children, PATIENCE)[1] == []
        assert list(folder.glob("helixq-bench-*")) == []
    finally:
        bench.stop()
