"""The alert rules, the dashboard and the documents name metrics that exist, with labels that they have."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml  # type: ignore[import-untyped]  # PyYAML ships no types
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from promql_parser import Expr, MatchOp, VectorSelector

from jobs.pipeline import Role
from tests.conftest import RUNTIME, WORKER
from tests.integration.web.client import serving
from tests.servers import RedisServer
from tests.unit.test_deployment import ROOT, compose
from worker.engine.interface import EngineStats
from worker.metrics import WorkerCollector

DEPLOY = ROOT / "deploy"
#: Labels that Prometheus adds.
OF_PROMETHEUS = {"job", "instance"}


class Engine:
    """An engine that measures everything, a GPU's memory included."""

    name = "fake"
    max_num_seqs = 4
    max_model_len = 100

    def submit(self, _: Any) -> Any: ...
    def close(self) -> None: ...
    def stats(self) -> EngineStats:
        return EngineStats(*range(1, 11))


class Runner:
    running = ()
    ended = {(Role.ACTOR, "released"): 1}  # noqa: RUF012 (it never changes)


@pytest.fixture(scope="module")
def samples(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, str]]]:
    """The labels of the samples of a web and a worker, by their names."""
    url = f"sqlite:///{tmp_path_factory.mktemp('db') / 'jobs.sqlite3'}"
    with serving(url, redis_server.url) as web:
        web.get("/metrics")
        text = web.get("/metrics").text
    registry = CollectorRegistry()
    collector = WorkerCollector(Engine(), Runner(), WORKER, RUNTIME)  # type: ignore[arg-type]  # fakes
    registry.register(collector)
    text += generate_latest(registry).decode()
    found = defaultdict(list)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name].append(sample.labels)
    return {**found, "up": [{}]}


def rules() -> list[dict[str, Any]]:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    [name] = config["rule_files"]
    [group] = yaml.safe_load((DEPLOY / "prometheus" / name).read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def dashboard() -> dict[str, Any]:
    [file] = (DEPLOY / "grafana" / "dashboards").glob("*.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def queries() -> list[str]:
    of_panels = [
        target["expr"].replace("$__rate_interval", "5m")
        for panel in dashboard()["panels"]
        for target in panel.get("targets", ())
    ]
    assert len(of_panels) > 40
    return [rule["expr"] for rule in rules()] + of_panels


def selectors(expr: Expr) -> Iterator[VectorSelector]:
    """Yield the selectors of an expression, and check the labels that it is aggregated by."""
    if isinstance(expr, VectorSelector):
        yield expr
    for name in ("expr", "lhs", "rhs", "vector_selector"):
        if (inner := getattr(expr, name, None)) is not None:
            yield from selectors(inner)
    for inner in getattr(expr, "args", ()):
        yield from selectors(inner)


def aggregated_by(expr: Expr) -> Iterator[tuple[Expr, list[str]]]:
    """Yield each aggregation's inner expression with the labels that it keeps."""
    if isinstance(expr, promql_parser.AggregateExpr):
        if expr.modifier is not None:
            yield expr.expr, expr.modifier.labels
        yield from aggregated_by(expr.expr)
    for name in ("lhs", "rhs"):
        if (inner := getattr(expr, name, None)) is not None:
            yield from aggregated_by(inner)
    for inner in getattr(expr, "args", ()):
        yield from aggregated_by(inner)


def test_queries_find_series(samples: dict[str, list[dict[str, str]]]) -> None:
    for query in queries():
        parsed = promql_parser.parse(query)
        for selector in selectors(parsed):
            series = samples.get(selector.name or "")
            assert series, f"{query}: there is no {selector.name}"
            for matcher in selector.matchers.matchers:
                if matcher.name in OF_PROMETHEUS:
                    continue
                values = {labels.get(matcher.name) for labels in series}
                assert None not in values, f"{query}: {selector.name} has no {matcher.name}"
                if matcher.op in (MatchOp.Equal, MatchOp.NotEqual) and matcher.name != "route":
                    assert matcher.value in values, query
        for inner, labels in aggregated_by(parsed):
            for selector in selectors(inner):
                known = set(samples[selector.name or ""][0]) | OF_PROMETHEUS
                assert set(labels) <= known, f"{query}: {labels}"


def test_alerts_say_what_is_wrong() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) > 10
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert {"summary", "description"} == set(rule["annotations"])


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + column, place["y"] + line)
            for column in range(place["w"])
            for line in range(place["h"])
        }
        assert not taken & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_the_documents_list_the_metrics(samples: dict[str, list[dict[str, str]]]) -> None:
    text = (ROOT / "docs" / "deployment-monitoring.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`(helixq_\w+)`", text))
    served = {
        re.sub(r"_(bucket|sum|count|created)$", "", name)
        for name in samples
        if name.startswith("helixq_") and not name.endswith("_created")
    }
    assert listed == served


def test_the_services_that_watch_find_their_files_and_targets() -> None:
    services = compose()
    for name in ("prometheus", "grafana"):
        assert services[name]["profiles"] == ["observe"]
        for volume in services[name]["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith(".") or (ROOT / source).is_dir(), source
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    targets = {
        job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]
    }
    workers = ("worker", "worker-elsewhere")
    ports = {name: services[name]["environment"]["HELIXQ_METRICS_PORT"] for name in workers}
    assert targets == {
        "helixq": ["web:8000"],
        "helixq-worker": [f"{name}:{port}" for name, port in ports.items()],
        "collector": ["collector:8888"],
    }
    [key] = services["prometheus"]["secrets"]
    credentials = config["scrape_configs"][0]["authorization"]["credentials_file"]
    assert Path(credentials).name == key
    provisioning = DEPLOY / "grafana" / "provisioning"
    [provider] = yaml.safe_load((provisioning / "dashboards" / "helixq.yml").read_text())[
        "providers"
    ]
    mounts = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounts
