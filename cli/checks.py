"""The checks of `helixq doctor`. Each returns what it found; none changes anything."""

from __future__ import annotations

import ctypes
import datetime as dt
import importlib.metadata
import importlib.util
import json
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx2
import redis
import sqlalchemy as sa

from cli.errors import explain
from cli.listing import open_database
from jobs import advice
from jobs.column_types import utcnow
from jobs.settings import Settings
from jobs.statements import log
from jobs.tlog.note import Signer
from jobs.use_cases import keys, system

#: Bytes that should be free where data is written: with less, a warning, or an error.
LOW_SPACE, NO_SPACE = 2 << 30, 200 << 20
#: Seconds that this machine's clock and the database's may differ.
MAX_SKEW = 5.0
#: The first version of Redis with all that is used.
MIN_REDIS = (6, 2)
TIMEOUT = 5.0


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    level: Level
    #: What is so, and after a colon what to do about it.
    message: str


@dataclass(frozen=True)
class Result:
    """A finding with the name of its check."""

    check: str
    level: Level
    message: str

    def to_dict(self) -> dict[str, str]:
        """Return it as JSON."""
        return asdict(self)


Findings = Iterator[Finding]


def ok(message: str) -> Finding:
    return Finding(Level.OK, message)


def warning(message: str) -> Finding:
    return Finding(Level.WARNING, message)


def error(message: str) -> Finding:
    return Finding(Level.ERROR, message)


def data_dir(settings: Settings) -> Findings:
    """Whether the data folder can be written, by whom, and how much room it has."""
    folder = settings.data_dir
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        yield error(f"{folder} {kind}: make the folder, or correct HELIXQ_DATA_DIR")
        return
    mode = stat.S_IMODE(folder.stat().st_mode)
    try:
        probe = folder / ".doctor"
        probe.touch()
        probe.unlink()
    except OSError as problem:
        yield error(f"{folder} cannot be written ({problem.strerror}): change its owner or mode")
        return
    if mode & stat.S_IWOTH:
        yield error(f"everybody may write to {folder} (mode {mode:o}): chmod o-w {folder}")
    elif mode & stat.S_IROTH and settings.database.startswith("sqlite"):
        yield warning(
            f"everybody may read the histories in {folder} (mode {mode:o}): chmod o-rx {folder}"
        )
    else:
        yield ok(f"{folder} can be written")
    free = shutil.disk_usage(folder).free
    said = f"{folder} has {free / (1 << 30):.1f} GiB of free space"
    if free < NO_SPACE:
        yield error(f"{said}: make room, or no job can be stored")
    elif free < LOW_SPACE:
        yield warning(f"{said}: make room, or delete old jobs with HELIXQ_RETENTION_DAYS")
    else:
        yield ok(said)


def database(settings: Settings) -> Findings:
    """Whether the database responds, has the schema and the encoding, can be written, and agrees on the time."""
    with open_database(settings) as db:
        db.check_writable()
        yield ok(f"{db.engine.dialect.name} responds, and its schema is up to date")
        before = dt.datetime.now(dt.UTC)
        now = db.look(lambda connection: connection.scalar(sa.select(utcnow())))
        after = dt.datetime.now(dt.UTC)
        if now is not None:
            skew = max((before - now).total_seconds(), (now - after).total_seconds(), 0.0)
            if skew > MAX_SKEW:
                yield warning(
                    f"the clocks of this machine and of the database differ by {skew:.0f} s: synchronise them (NTP)"
                )
        for sentence in advice.about_database(db, processes=1):
            yield warning(sentence)


def redis_server(settings: Settings) -> Findings:
    """Whether Redis responds, and how it keeps what it holds."""
    with redis.Redis.from_url(
        settings.redis,
        socket_connect_timeout=TIMEOUT,
        socket_timeout=TIMEOUT,
        decode_responses=True,
    ) as client:
        client.ping()
        try:
            info: dict[str, Any] = client.info()
        except redis.ResponseError:
            yield warning(
                "Redis responds, and does not let this user read INFO: allow it, to check the rest"
            )
            return
        version = str(info["redis_version"])
        if tuple(int(part) for part in version.split(".")[:2]) < MIN_REDIS:
            yield error(f"Redis is {version}: install {'.'.join(map(str, MIN_REDIS))} or newer")
        else:
            yield ok(f"Redis {version} responds")
        if not info.get("aof_enabled"):
            yield warning(
                "Redis keeps no append-only file, so that a restart delays waiting jobs: set appendonly yes"
            )
        for sentence in advice.about_redis(client):
            yield warning(sentence)


def log_key(settings: Settings) -> Findings:
    """Whether this machine's settings can sign the transparency log."""
    with open_database(settings) as db, db.read() as connection:
        origin, size = log.state(connection)
        known = log.keys(connection)
    if origin is None:
        yield ok("the transparency log is empty")
        return
    if settings.log_origin not in (None, origin):
        yield error(
            f"HELIXQ_LOG_ORIGIN is {settings.log_origin}, and the log is {origin} for good: unset it"
        )
        return
    if settings.log_key is None:
        if known and known[-1].private is None:
            yield error(
                "the log is signed with a HELIXQ_LOG_KEY, which is not set here: set it where workers run, "
                "or `helixq maintain`"
            )
        else:
            yield ok(f"{origin} has {size} entries, and the database has its key")
        return
    signer = Signer.parse(settings.log_key)
    verifiers = [row.verifier for row in known]
    if signer.name != origin:
        yield error(
            f"HELIXQ_LOG_KEY is a key of {signer.name}, and the log is {origin}: set its key"
        )
    elif str(signer.verifier) in verifiers[:-1]:
        yield error("HELIXQ_LOG_KEY is an old key of the log: set the newest")
    elif str(signer.verifier) not in verifiers:
        yield warning("HELIXQ_LOG_KEY is new: the next entry is signed with it, for good")
    else:
        yield ok(f"{origin} has {size} entries, and HELIXQ_LOG_KEY signs it")


def model(settings: Settings) -> Findings:
    """Whether base and adapters are there, and their files whole: their headers are read, and no weights.

    With an engine elsewhere, whether its servers respond and list the roles' models.
    """
    if settings.engine == "openai":
        for url in settings.engine_url:
            yield _engine_server(settings, url)
        return
    references = {"HELIXQ_BASE_MODEL": settings.base_model} | {
        f"HELIXQ_ADAPTERS ({role})": reference for role, reference in settings.adapters.items()
    }
    for setting, reference in references.items():
        name = "config.json" if setting == "HELIXQ_BASE_MODEL" else "adapter_config.json"
        yield _checkpoint(setting, reference, name)


def _engine_server(settings: Settings, url: str) -> Finding:
    key = settings.engine_api_key
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        reply = httpx2.get(f"{url}/models", headers=headers, timeout=TIMEOUT, trust_env=False)
    except httpx2.RequestError as problem:
        return error(
            f"no server answers at {url} ({problem}): start it, or correct HELIXQ_ENGINE_URL"
        )
    if reply.status_code in (401, 403):
        return error(f"{url} refuses the API key: correct HELIXQ_ENGINE_API_KEY")
    try:
        names = {model["id"] for model in reply.json()["data"]}
    except (ValueError, KeyError, TypeError):
        return warning(f"{url} does not list its models: a worker tries them when it starts")
    # SGLang names an adapter `base:adapter`, and lists its base.
    wanted = {name: {name, name.rpartition(":")[0]} for name in settings.adapters.values()}
    if missing := [name for name, spellings in wanted.items() if not spellings & names]:
        return error(
            f"{url} does not list {', '.join(missing)}: correct HELIXQ_ADAPTERS, or serve them there"
        )
    return ok(f"{url} has the models of all roles")


def _checkpoint(setting: str, reference: str, config: str) -> Finding:
    folder = Path(reference).expanduser()
    if not folder.is_dir():
        if reference.startswith((".", "~", "/")) or reference.count("/") != 1:
            return error(f"{setting}: there is no folder {reference}: correct the setting")
        # Imported here since it is slow.
        from huggingface_hub import try_to_load_from_cache

        repo, _, revision = reference.partition("@")
        cached = try_to_load_from_cache(repo, config, revision=revision or None)
        if not isinstance(cached, str):
            return warning(
                f"{setting}: {reference} is not in the cache of this machine: a worker downloads it from the hub"
            )
        folder = Path(cached).parent
    try:
        json.loads((folder / config).read_bytes())
    except FileNotFoundError:
        return error(f"{setting}: {folder} has no {config}: give the folder that has it")
    except (OSError, ValueError) as problem:
        return error(f"{setting}: {folder / config} cannot be read ({problem}): copy it again")
    if config == "config.json" and not (folder / "tokenizer.json").is_file():
        return error(f"{setting}: {folder} has no tokenizer.json: copy it from the model")
    files = sorted(folder.glob("*.safetensors"))
    if not files and not [*folder.glob("*.bin")]:
        return error(f"{setting}: {folder} has no weights: copy its *.safetensors")
    for file in files:
        if damage := _damage(file):
            return error(f"{setting}: {file} {damage}: copy it again")
    return ok(f"{setting}: {reference} is whole")


def _damage(file: Path) -> str | None:
    """Return what is wrong with a file of safetensors by its header and its size; None if nothing is."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            opened.keys()
    except (OSError, SafetensorError) as problem:
        return f"is damaged ({problem})"
    return None


def workers(settings: Settings) -> Findings:
    """Whether a worker is ready, with the model of the settings."""
    with open_database(settings) as db:
        found = system.describe(db).workers
    ready = [running.worker for running in found if running.state == "ready"]
    lost = [running.worker.id for running in found if running.state == "lost"]
    if not ready:
        if any(running.state == "loading" for running in found):
            yield warning("a worker loads its model: wait until it is ready")
        else:
            yield error("no worker is ready, so that questions wait: start `helixq worker`")
    if lost:
        yield warning(f"{', '.join(lost)} sent no heartbeat for a while: look at its log")
    if len({worker.model for worker in ready}) > 1:
        yield warning(
            "the workers have several models, which take different jobs: give all of them the same settings"
        )
    for worker in ready:
        base = worker.runtime.get("base", {}).get("name")
        if base not in (None, settings.base_model) and settings.engine != "openai":
            yield warning(
                f"{worker.id} serves {base}, and HELIXQ_BASE_MODEL here is {settings.base_model}: make them the same"
            )
        else:
            yield ok(f"{worker.id} is ready")


def web(settings: Settings) -> Findings:
    """Whether the web responds, and can be used."""
    try:
        reply = httpx2.get(f"{settings.url}/readyz", timeout=TIMEOUT, trust_env=False)
        checks = reply.json()["checks"]
    except httpx2.TransportError as problem:
        yield error(
            f"no web answers at {settings.url} ({problem}): start `helixq web`, or correct HELIXQ_HOST and HELIXQ_PORT"
        )
        return
    except (ValueError, KeyError, TypeError):
        yield error(f"another program answers at {settings.url}: stop it, or set HELIXQ_PORT")
        return
    amiss = [f"{name} ({said})" for name, said in checks.items() if said != "ok"]
    if amiss:
        yield warning(f"the web at {settings.url} is not ready: see to {', '.join(amiss)}")
    else:
        yield ok(f"the web at {settings.url} is ready")
    if settings.auth_required:
        with open_database(settings) as db:
            if not keys.any_valid(db):
                yield warning(
                    "API keys are required, and there is none: make one with `helixq keys create`"
                )
    elif not settings.loopback:
        yield warning(
            f"HELIXQ_AUTH is off and the web listens on {settings.host}, so that everybody who can reach it may ask: "
            "set HELIXQ_AUTH=required, or have a proxy check them"
        )


def gpu(settings: Settings) -> Findings:
    """Whether there is a driver, and a PyTorch for it, if a GPU is configured."""
    if settings.quantization == "4bit" and importlib.util.find_spec("bitsandbytes") is None:
        yield error(
            "HELIXQ_QUANTIZATION=4bit needs bitsandbytes: pip install 'helixq[quantization]'"
        )
    if not settings.device.startswith("cuda"):
        yield ok(f"HELIXQ_DEVICE is {settings.device}: no GPU is required")
        return
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        yield error("PyTorch is not installed: pip install 'helixq[worker]'")
        return
    if torch.endswith("+cpu"):
        yield error(
            f"PyTorch {torch} has no CUDA: install a build with CUDA, or set HELIXQ_DEVICE=cpu"
        )
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        yield error(
            f"HELIXQ_DEVICE is {settings.device}, and there is no NVIDIA driver: install it, or set HELIXQ_DEVICE=cpu"
        )
        return
    version, count = ctypes.c_int(), ctypes.c_int()
    if (
        driver.cuInit(0)
        or driver.cuDriverGetVersion(ctypes.byref(version))
        or driver.cuDeviceGetCount(ctypes.byref(count))
    ):
        yield error("the NVIDIA driver sees no GPU: look at `nvidia-smi`")
        return
    index = int(settings.device.partition(":")[2] or 0)
    if index >= count.value:
        yield error(
            f"HELIXQ_DEVICE is {settings.device}, and there are {count.value} GPUs: lower the number"
        )
    else:
        yield ok(
            f"{count.value} GPUs, with a driver for CUDA {version.value // 1000}.{version.value % 1000 // 10}"
        )


#: In the order in which they are shown.
CHECKS: dict[str, Callable[[Settings], Findings]] = {
    "data": data_dir,
    "database": database,
    "redis": redis_server,
    "log": log_key,
    "model": model,
    "gpu": gpu,
    "worker": workers,
    "web": web,
}


NEED_DATABASE = {"log", "worker"}


def run(settings: Settings, skipped: tuple[str, ...]) -> Iterator[Result]:
    """Run the checks that are not skipped; yield what they find as they find it.

    What needs the database is left out if that cannot be used.
    """
    yield Result("settings", Level.OK, "all settings are valid")
    has_database = True
    for name, check in CHECKS.items():
        if name in skipped or (name in NEED_DATABASE and not has_database):
            continue
        try:
            for finding in check(settings):
                yield Result(name, finding.level, finding.message)
        except Exception as problem:  # noqa: BLE001 (a check that fails must not hide the others)
            said = explain(problem) or f"the check failed ({type(problem).__name__}: {problem})"
            yield Result(name, Level.ERROR, said)
            has_database &= name != "database"
