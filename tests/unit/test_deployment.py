"""The compose file, the images and the documented settings match the program, and each other."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml  # type: ignore[import-untyped]  # PyYAML ships no types
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cli.commands import COMMANDS
from cli.doctor import NAMES
from jobs import settings
from jobs.database_engine import MAX_CONNECTIONS
from jobs.settings import PREFIX, Settings

ROOT = Path(__file__).parent.parent.parent
PROFILES = {"serve", "elsewhere", "demo", "observe"}
#: Images that have no program which could check their health.
WITHOUT_SHELL = {"collector", "jaeger"}
ANALYZE = shutil.which("systemd-analyze")

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}")


def substitute(tree: Any, environ: dict[str, str]) -> Any:
    """Replace ``${X}``, ``${X:-default}`` and ``${X:?message}`` as docker compose does."""

    def value(match: re.Match[str]) -> str:
        if configured := environ.get(match["name"]):
            return configured
        if match["kind"] == "?":
            raise KeyError(f"{match['name']}: {match['rest']}")
        return match["rest"] or ""

    if isinstance(tree, dict):
        return {key: substitute(branch, environ) for key, branch in tree.items()}
    if isinstance(tree, list):
        return [substitute(branch, environ) for branch in tree]
    return _VARIABLE.sub(value, tree) if isinstance(tree, str) else tree


def file() -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return tree


def compose(**environ: str) -> dict[str, Any]:
    """Read docker-compose.yml; return its services."""
    services: dict[str, Any] = substitute(file(), environ)["services"]
    return services


OURS = ["migrate", "web", "maintain", "adapters", "worker", "worker-elsewhere", "demo"]
#: Those of PostgreSQL and Redis.
SERVERS = [name for name in OURS if name not in ("adapters", "demo")]
#: What a user must give the service besides the secrets.
NEEDED = {
    "worker-elsewhere": {
        "HELIXQ_ENGINE_URL": "http://gpu:8000/v1",
        "HELIXQ_ADAPTERS": "actor=a,critic=c,regenerator=r",
    }
}


def environment(name: str, secrets: Path, **environ: str) -> dict[str, str]:
    """Return a service's environment, with its secrets where they are on this machine."""
    given: dict[str, str] = compose(**NEEDED.get(name, {}), **environ)[name]["environment"]
    return {
        variable: value.replace("/run/secrets", str(secrets)) for variable, value in given.items()
    }


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """The secrets that the script makes."""
    (tmp_path / "deploy").mkdir()
    shutil.copy(ROOT / "deploy/secrets.sh", tmp_path / "deploy")
    subprocess.run(["/bin/sh", tmp_path / "deploy/secrets.sh"], check=True)
    return tmp_path / "secrets"


def test_the_compose_file_has_the_shape_that_docker_compose_takes() -> None:
    # The package has the schema, and is not imported: it needs others.
    package = metadata.distribution("check-jsonschema")
    vendored = package.locate_file("check_jsonschema/builtin_schemas/vendor/compose-spec.json")
    schema = json.loads(Path(str(vendored)).read_text(encoding="utf-8"))
    validator = jsonschema_rs.validator_for(schema)
    assert [f"{e.instance_path}: {e.message}" for e in validator.iter_errors(file())] == []
    assert validator.is_valid(substitute(file(), {}))


def test_the_dockerfile_passes_a_linter() -> None:
    subprocess.run([Path(sys.executable).with_name("hadolint"), "Dockerfile"], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", OURS)
def test_the_settings_of_a_service_are_accepted(name: str, secrets: Path) -> None:
    loaded = settings.load(environment(name, secrets))
    if name in SERVERS:
        password = (secrets / "postgres_password").read_text().strip()
        assert len(password) == 48
        assert loaded.database == f"postgresql+psycopg://helixq:{password}@postgres/helixq"
        assert loaded.redis == "redis://redis:6379/0"


def test_the_secrets_are_kept_and_nobody_else_may_enter_their_folder(secrets: Path) -> None:
    before = (secrets / "postgres_password").read_text()
    subprocess.run(["/bin/sh", secrets.parent / "deploy/secrets.sh"], check=True)
    assert (secrets / "postgres_password").read_text() == before
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    # Users of the containers read them.
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets.iterdir()} == {0o644}
    named = {Path(secret["file"]) for secret in file()["secrets"].values()}
    assert named == {Path("secrets") / path.name for path in secrets.iterdir()}


def test_services_have_the_secrets_that_they_read() -> None:
    for service in compose().values():
        paths = [
            v for v in service.get("environment", {}).values() if v.startswith("/run/secrets/")
        ]
        if "environment" in service:
            assert {path.rpartition("/")[2] for path in paths} == set(service.get("secrets", []))
    assert not any("PASSWORD" in name for name in compose()["web"]["environment"])


@pytest.mark.parametrize("name", OURS)
def test_the_command_of_a_service_exists(name: str) -> None:
    program, *command = compose()[name]["command"]
    assert program == "helixq"
    assert command in [path.split() for path in COMMANDS]


def read_by() -> dict[str, set[str]]:
    """Read the table of docs/settings.md: each command to the settings that it uses."""
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    table = text.partition("## Which command uses which")[2].partition("\n## ")[0]
    commands: dict[str, set[str]] = {}
    for names, readers in re.findall(r"^\| (`[A-Z].*?) \| (.*?) \|$", table, re.MULTILINE):
        for command in re.findall(r"`([a-z]+)`", readers):
            commands.setdefault(command, set()).update(re.findall(r"`([A-Z_]+)`", names))
    return commands


def test_every_setting_reaches_the_services_that_use_it() -> None:
    commands = read_by()
    used = set().union(*commands.values())
    assert used == {name.upper() for name in Settings.model_fields}
    # Where the engine is elsewhere, its servers decide them; the image has a folder.
    elsewhere = {"DTYPE", "QUANTIZATION", "DEVICE"}
    for name, command, without in (
        ("migrate", "migrate", set[str]()),
        ("web", "web", set[str]()),
        ("maintain", "maintain", set[str]()),
        ("worker", "worker", {"ENGINE_URL", "ENGINE_API_KEY"}),
        ("worker-elsewhere", "worker", elsewhere),
    ):
        passed = {v.removeprefix(PREFIX) for v in compose()[name]["environment"] if PREFIX in v}
        wanted = commands[command] - without - {"DATA_DIR"}
        assert wanted - {v.removesuffix("_FILE") for v in passed} == set(), name


def test_what_a_user_sets_arrives(secrets: Path) -> None:
    values = {
        "HELIXQ_QUANTIZATION": "4bit",
        "HELIXQ_SLOTS": "24",
        "HELIXQ_MAX_CONTEXT": "2048",
        "HELIXQ_BASE_MODEL": "org/base@abc123",
        "HELIXQ_ADAPTERS": "actor=org/a@1,critic=org/c@2,regenerator=org/r@3",
    }
    loaded = settings.load(environment("worker", secrets, **values))
    assert (loaded.quantization, loaded.slots, loaded.max_context) == ("4bit", 24, 2048)
    assert loaded.base_model == "org/base@abc123"
    assert list(loaded.adapters.values()) == ["org/a@1", "org/c@2", "org/r@3"]
    (secrets / "engine_api_key").write_text("sk-1")
    loaded = settings.load(environment("worker-elsewhere", secrets))
    assert (loaded.engine, loaded.engine_url) == ("openai", ("http://gpu:8000/v1",))
    assert (loaded.engine_api_key, loaded.device) == ("sk-1", "auto")


def test_only_pages_are_published_and_on_loopback_only() -> None:
    services = compose(HELIXQ_PORT="9000")
    assert {name: s["ports"] for name, s in services.items() if "ports" in s} == {
        "web": ["127.0.0.1:9000:8000"],
        "demo": ["127.0.0.1:9000:8000"],
        "grafana": ["127.0.0.1:3000:3000"],
        "jaeger": ["127.0.0.1:16686:16686"],
    }
    # The port in the container, which the web listens on and the healthcheck uses.
    for name in ("web", "demo"):
        assert services[name]["environment"]["HELIXQ_PORT"] == "8000"
        assert "127.0.0.1:8000/" in services[name]["healthcheck"]["test"][-1]


def test_the_worker_serves_the_cards_checkpoints(secrets: Path) -> None:
    loaded = settings.load(environment("worker", secrets))
    assert re.fullmatch(r"mistralai/Mistral-7B-v0.1@[0-9a-f]{40}", loaded.base_model)
    assert loaded.adapters == {
        role: f"rhysjones/HelixNet-LMoE-{role.capitalize()}" for role in loaded.adapters
    }


def test_a_worker_waits_until_its_adapters_are_converted() -> None:
    """In the cache that it uses, and those that it is given."""
    for values in ({}, {"HELIXQ_ADAPTERS": "actor=a/b,critic=a/c,regenerator=a/d"}):
        services = compose(**values)
        adapters, worker = services["adapters"], services["worker"]
        condition = worker["depends_on"]["adapters"]["condition"]
        assert condition == "service_completed_successfully"
        assert set(adapters["volumes"]) <= set(worker["volumes"])
        for name in ("HELIXQ_ADAPTERS", "HF_TOKEN_PATH"):
            assert adapters["environment"][name] == worker["environment"][name]
        assert adapters["image"] == worker["image"]


def test_the_worker_fits_a_card_of_24_gb(secrets: Path) -> None:
    """By the sizes in docs/deployment-workers.md, "Memory and disk"."""
    loaded = settings.load(environment("worker", secrets))
    weights = 1.07 * (2 * 7.24e9 + 3 * 2 * 168e6)
    left = 24e9 - weights - 1.5e9  # The driver, PyTorch and the tensors of a step.
    assert loaded.slots == "auto", "as many as fit"
    assert loaded.max_context is not None
    assert left / (loaded.max_context * (128 << 10)) >= 8


@pytest.mark.parametrize("profile", ["serve", "elsewhere"])
def test_postgresql_has_connections_for_all(profile: str) -> None:
    services = compose()
    processes = [n for n in SERVERS if profile in services[n]["profiles"] and n != "migrate"]
    [limit] = re.findall(r"max_connections=(\d+)", " ".join(services["postgres"]["command"]))
    # PostgreSQL keeps 3 for superusers. `migrate` and `keys` take one each, and there is room for three more workers.
    assert MAX_CONNECTIONS * (len(processes) + 3) + 2 <= int(limit) - 3


def test_each_profile_is_whole() -> None:
    services = compose()
    assert {p for service in services.values() for p in service["profiles"]} == PROFILES
    for service in services.values():
        for name, dependency in service.get("depends_on", {}).items():
            assert set(service["profiles"]) <= set(services[name]["profiles"])
            if dependency["condition"] == "service_healthy":
                assert "healthcheck" in services[name]
            else:
                assert services[name]["restart"] == "no"
    assert "secrets" not in services["demo"], "it starts without anything"


def test_every_image_is_built_once() -> None:
    services = compose()
    built = [s["image"] for s in services.values() if "build" in s]
    assert len(built) == len(set(built)) == 3
    assert {services[name]["image"] for name in OURS} == set(built)
    targets = re.findall(r"^FROM .* AS ([\w-]+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert {s["build"]["target"] for s in services.values() if "build" in s} <= set(targets)
    for name in OURS:
        # Who waits for `migrate` finds its image built.
        assert "build" in services[name] or "migrate" in services[name]["depends_on"]


def test_every_service_is_watched_contained_and_logs_within_bounds() -> None:
    for name, service in compose().items():
        one_shot = service["restart"] == "no" and name in ("migrate", "adapters")
        assert ("healthcheck" in service) != (one_shot or name in WITHOUT_SHELL), name
        assert service["logging"]["options"] == {"max-size": "20m", "max-file": "5"}, name
        assert "no-new-privileges:true" in service["security_opt"], name
        if name in OURS:
            assert service["read_only"], name
            assert service["init"], name
            assert service["cap_drop"] == ["ALL"], name
            mounts = {mount.split(":")[1] for mount in service.get("volumes", [])}
            assert mounts <= {"/var/lib/helixq", "/var/cache/huggingface"}, name
        # A worker that cannot use its checkpoints is not started for ever.
        wanted = "on-failure:5" if name.startswith("worker") else "unless-stopped"
        once = one_shot or name == "demo"
        assert service["restart"] == ("no" if once else wanted), name


def test_health_is_checked_by_what_is_there() -> None:
    health = compose()["maintain"]["healthcheck"]["test"]
    skipped = {value for flag, value in itertools.pairwise(health) if flag == "--skip"}
    assert set(NAMES) - skipped == {"database", "redis", "log"}
    metrics = compose()["worker"]["environment"]["HELIXQ_METRICS_PORT"]
    assert f"127.0.0.1:{metrics}/metrics" in compose()["worker"]["healthcheck"]["test"][-1]
    scraped = (ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8")
    assert f"worker:{metrics}" in scraped
    assert f"worker-elsewhere:{metrics}" in scraped
    assert "collector:8888" in scraped


def test_files_that_services_mount_exist() -> None:
    for service in compose().values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (ROOT / source).exists()
            else:
                assert source in file()["volumes"]


def requirements(name: str) -> dict[str, list[str]]:
    """Read the requirements of an image: each name and version, with its hashes."""
    text = (ROOT / f"deploy/requirements/{name}.txt").read_text(encoding="utf-8")
    return {
        pin.split(" ")[0]: re.findall(r"--hash=sha256:([0-9a-f]{64})", hashes)
        for pin, hashes in re.findall(r"^([\w-]+==[^\s;]+)([^#]*?)(?=^\S|\Z)", text, re.MULTILINE)
    }


def needed(*extras: str) -> Iterator[str]:
    """Yield what HelixQ needs on Linux with some extras: names with versions, as constraints.txt has them."""
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    versions: dict[str, str] = {
        canonicalize_name(n): v for n, v in re.findall(r"^([\w.-]+)==(\S+)", constraints, re.M)
    }
    python = {"python_version": "3.13", "python_full_version": "3.13.0"}
    seen: set[tuple[str, str]] = set()
    waiting = [("helixq", extra) for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        if name in versions and not extra:
            yield f"{name}=={versions[name]}"
        for line in _requires(name):
            found = Requirement(line)
            if not found.marker or found.marker.evaluate({**python, "extra": extra}):
                waiting += [(canonicalize_name(found.name), e) for e in ("", *found.extras)]


def _requires(name: str) -> list[str]:
    if name != "helixq":
        try:
            return metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            return []  # Of an extra that is not installed here.
    # The tree's own, which what is installed may lag behind.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra, needs in project["optional-dependencies"].items():
        lines += [_with_extra(Requirement(line), extra) for line in needs]
    return lines


def _with_extra(requirement: Requirement, extra: str) -> str:
    marker = f'extra == "{extra}"'
    if requirement.marker:
        marker = f"({requirement.marker}) and {marker}"
    requirement.marker = Marker(marker)
    return str(requirement)


@pytest.mark.parametrize(
    ("name", "extras"),
    [("web", ()), ("worker-cpu", ("worker",)), ("worker-cuda", ("worker", "quantization"))],
)
def test_the_requirements_of_an_image_are_up_to_date(name: str, extras: tuple[str, ...]) -> None:
    """`make requirements` writes them."""
    pins = requirements(name)
    assert all(pins.values()), "each has hashes"
    wanted = set(needed("export", "otlp", *extras))
    if name == "worker-cpu":
        [torch] = [pin for pin in wanted if pin.startswith("torch==")]
        assert f"{torch}+cpu" in (ROOT / "deploy/requirements/torch-cpu.txt").read_text()
        wanted.remove(torch)
        assert not any(pin.startswith(("nvidia-", "triton")) for pin in pins)
    assert wanted - pins.keys() == set()
    if name == "worker-cuda":
        # PyTorch says in its metadata which of NVIDIA's libraries it was built with.
        assert sum(pin.startswith("nvidia-") for pin in pins) >= 15
        assert any(pin.startswith("nvidia-cuda-runtime==13.0.") for pin in pins)
        assert 'NVIDIA_REQUIRE_CUDA="cuda>=13.0"' in (ROOT / "Dockerfile").read_text()


def test_the_settings_of_the_image_exist() -> None:
    names = re.findall(rf"{PREFIX}(\w+)=", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert names
    assert {name.lower() for name in names} <= set(Settings.model_fields)


def table_of_settings() -> dict[str, list[str]]:
    """Read the table in docs/settings.md: the field's name to the other cells of its row."""
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = re.findall(rf"^\| `{PREFIX}(\w+)` \|(.*)\|$", text, re.MULTILINE)
    return {name.lower(): [cell.strip() for cell in cells.split(" | ")] for name, cells in rows}


def test_the_table_names_every_setting_and_no_other() -> None:
    assert list(table_of_settings()) == list(Settings.model_fields)


def test_the_table_shows_the_defaults() -> None:
    for name, (_, default, _) in table_of_settings().items():
        value = Settings.model_fields[name].default
        if isinstance(value, bool):
            value = str(value).lower()
        if isinstance(value, str | int | float) and "/" not in str(value):
            assert default == f"`{value}`", name
        elif value is None:
            assert "not set" in default, name


@pytest.mark.skipif(ANALYZE is None, reason="there is no systemd here")
def test_systemd_takes_the_documented_unit(tmp_path: Path) -> None:
    assert ANALYZE is not None
    text = (ROOT / "docs" / "deployment-hosts.md").read_text(encoding="utf-8")
    [unit] = re.findall(r"^```ini\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    program = "/opt/helixq/venv/bin/helixq"
    assert f"ExecStart={program} %i" in unit
    file = tmp_path / "helixq@.service"
    file.write_text(unit.replace(program, "/bin/true"), encoding="utf-8")
    done = subprocess.run(
        [ANALYZE, "verify", str(file)], capture_output=True, text=True, check=False
    )
    # A key that it does not know is a warning.
    assert (done.returncode, done.stderr) == (0, "")
