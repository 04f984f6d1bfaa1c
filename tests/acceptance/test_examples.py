"""The examples in the documents work: those in Python, with curl, and of the commands that ask."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
from openai import OpenAI

from jobs.settings import DEMO_CHECKPOINT
from tests import fork_client, servers
from tests.acceptance.conftest import Service, running
from tests.clients.server import WORKER
from tests.polling import poll

ROOT = Path(__file__).parent.parent.parent
#: Documents whose examples other tests run.
OTHERS = {
    "docs/clients.md": "tests/clients",
    "docs/learning.md": "tests/integration/test_learning.py",
    "docs/webhooks.md": "tests/integration/web/test_webhooks.py",
}

_BLOCK = re.compile(r"^```(?P<language>python|sh)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
#: A program that the examples in sh may start; blocks with others are about installing and deploying.
_COMMAND = re.compile(
    r"curl\b|sed\b|(?:echo \"[^\"]*\" \| |\w+=\$\()?(?:\S*/)?helixq (?:ask|chat|doctor|keys|stats|status|pause|resume|jobs (?:list|show|watch|replay|export|import|review|erase|delete|proof|verify|log-key|agreement))\b"
)


class Block(NamedTuple):
    language: str
    code: str


def blocks(document: str) -> list[Block]:
    """Return the examples of a document."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = [Block(match["language"], match["code"]) for match in _BLOCK.finditer(text)]
    return [
        block
        for block in found
        if (can_run(block.code) if block.language == "python" else is_about_asking(block.code))
    ]


def can_run(code: str) -> bool:
    """Return whether an example in Python has what it needs: to stream, datasets needs a package that nothing else does."""
    return "streaming=True" not in code or find_spec("aiohttp") is not None


def lines_of_files(document: str) -> list[str]:
    """Return the lines of a document's examples of files."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(r"^```jsonl\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def is_about_asking(code: str) -> bool:
    lines = code.replace("\\\n", "").splitlines()
    return all(_COMMAND.match(line) for line in lines)


DOCUMENTS = [
    name
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
    if (name := str(path.relative_to(ROOT))) not in OTHERS and blocks(name)
]


@pytest.fixture(scope="module")
def service(socket_folder: Path) -> Iterator[Service]:
    """A service for the examples of all documents."""
    folder = socket_folder / "examples"
    database = f"sqlite:///{folder / 'jobs.sqlite3'}"
    with running(DEMO_CHECKPOINT, database, folder, program=WORKER) as running_service:
        yield running_service


@pytest.fixture
def values(document: str, service: Service) -> dict[str, str]:
    """What stands for what in the examples: addresses, ids, and names of keys that are taken."""
    name = Path(document).stem
    create = servers.forked("keys", "create", name, "--json", environ=service.environ)
    assert create.wait() == 0, create.output
    return {
        "http://127.0.0.1:8000": service.url,
        "https://helixq.example": service.url,
        "key_4f1d2a9c6b7e8035": json.loads(create.output)["id"],
        "keys create ": f"keys create {name}-",
    }


@pytest.mark.parametrize("document", DOCUMENTS)
def test_examples_work(
    document: str,
    service: Service,
    values: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "questions.jsonl").write_text("".join(lines_of_files(document)), encoding="utf-8")
    job_id = service.submit("Why?")
    service.wait(job_id)
    # As if a person had read it, and an auditor had asked for both before: a checkpoint, and the log's key.
    review(service, job_id)
    (tmp_path / "checkpoint-of-last-year").write_text(first_checkpoint(service), encoding="utf-8")
    log_key = servers.forked("jobs", "log-key", environ=service.environ)
    assert log_key.wait() == 0, log_key.output
    environ = {
        **service.environ,
        "ID": job_id,
        "HELIXQ_API_KEY": "hq_example",
        "VKEY": log_key.output.strip(),
    }
    names: dict[str, object] = {}
    clients: set[OpenAI] = set()
    for block in blocks(document):
        code = block.code
        for example, value in values.items():
            code = code.replace(example, value)
        if block.language == "python":
            # The examples of a document continue each other.
            exec(compile(code, f"{document}:\n{code}", "exec"), names)  # noqa: S102 (our own)
            clients |= {value for value in names.values() if isinstance(value, OpenAI)}
        else:
            wait_until_sealed(service)
            run(code, environ)
    for client in clients:
        client.close()


def review(service: Service, job_id: str) -> None:
    """Review a job, and wait until the transparency log has the review."""
    job = f"/api/jobs/{job_id}"
    with service.http() as http:
        http.post(f"{job}/reviews", json={"critique": 1}).raise_for_status()
        poll(lambda: http.get(f"{job}/proof?review=0").is_success)


def wait_until_sealed(service: Service) -> None:
    """Wait until the transparency log has all ended jobs: whoever types the commands is slower than that."""
    with service.http() as http:
        poll(lambda: not http.get("/api/system").json()["log"]["unsealed"])


def first_checkpoint(service: Service) -> str:
    """Return the checkpoint of the transparency log."""
    with service.http() as http:
        return http.get("/log/checkpoint").text


def run(code: str, environ: dict[str, str]) -> None:
    """Run commands of a shell, the program from here, forked, and not from where it is installed.

    Variables that they set are there for the next commands in the same folder, as in a terminal.
    """
    program = f'helixq() {{ "{sys.executable}" -IS "{fork_client.__file__}" -m cli "$@"; }}'
    curl = 'curl() { command curl --fail --silent --show-error --noproxy "*" "$@"; }'
    code = re.sub(r"^\S*/helixq ", "helixq ", code, flags=re.MULTILINE)
    before = "set -a; [ ! -e .variables ] || . ./.variables"
    done = subprocess.run(
        ["/bin/bash", "-euc", f"{before}\n{program}\n{curl}\n{code}\nexport -p > .variables"],
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}"
