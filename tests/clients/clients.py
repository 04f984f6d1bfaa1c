"""The clients of the matrix, and how the script of one is run."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.clients.server import Server

HERE = Path(__file__).parent
#: The address and the key in the scripts and in docs/clients.md.
ADDRESS, KEY = "http://127.0.0.1:8000", "hq_..."
#: Seconds for all checks of a client, on a busy machine.
TIMEOUT = 900.0


@dataclass(frozen=True)
class Client:
    """A client at a version."""

    #: Its name in the table, on the command line and in the names of its files.
    name: str
    #: What to install at its newest version.
    package: str
    #: The file of its script.
    script: str
    #: Further packages that its script uses.
    extras: Sequence[str] = ()

    @property
    def is_node(self) -> bool:
        return self.script.endswith(".mjs")

    @property
    def path(self) -> Path:
        return HERE / ("node" if self.is_node else "python") / self.script

    @property
    def requirements(self) -> Path:
        """The pinned versions of everything that it needs."""
        if self.is_node:
            return HERE / "node" / "package.json"
        return HERE / f"requirements-{self.name}.txt"

    @property
    def version(self) -> str:
        """The pinned version of the client."""
        package = re.split(r"[\[<>=]", self.package)[0]
        text = self.requirements.read_text(encoding="utf-8")
        if self.is_node:
            return str(json.loads(text)["dependencies"][package])
        match = re.search(rf"^{re.escape(package)}(?:\[\w+\])?==([\w.]+)", text, re.MULTILINE)
        assert match is not None, f"{self.requirements} does not pin {package}"
        return match[1]


CLIENTS = [
    Client("openai", "openai", "openai_client.py"),
    Client("openai-2", "openai<3", "openai_client.py"),
    Client("openai-1", "openai<2", "openai_client.py"),
    Client("openai-agents", "openai-agents", "openai_agents_client.py"),
    Client("langchain-openai", "langchain-openai", "langchain_client.py"),
    Client(
        "llama-index",
        "llama-index-llms-openai",
        "llama_index_client.py",
        extras=["llama-index-llms-openai-like"],
    ),
    Client("litellm", "litellm", "litellm_client.py"),
    Client("pydantic-ai", "pydantic-ai-slim[openai]", "pydantic_ai_client.py"),
    Client("haystack", "haystack-ai", "haystack_client.py"),
    Client("llm", "llm", "llm_client.py"),
    Client("instructor", "instructor", "instructor_client.py"),
    Client("openai-node", "openai", "openai.mjs"),
    Client("openai-agents-js", "@openai/agents", "agents.mjs"),
    Client("ai-sdk", "ai", "ai_sdk.mjs"),
]


@dataclass(frozen=True)
class Outcome:
    """What a check of a client came to: a cell of the table."""

    client: str
    api: str
    check: str
    #: None if it passed.
    error: str | None
    note: str | None


def run(client: Client, program: str, server: Server, folder: Path) -> Iterator[Outcome]:
    """Run a client's script against a server, and yield its outcomes.

    Args:
        client: whose script to run.
        program: an interpreter whose environment has the client.
        server: to ask.
        folder: in which the script and its helpers are copied. Node looks for modules in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for source in client.path.parent.glob(f"*{client.path.suffix}"):
        text = source.read_text(encoding="utf-8").replace(ADDRESS, server.url)
        (folder / source.name).write_text(text.replace(KEY, server.key), encoding="utf-8")
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen(
        [program, client.script],
        cwd=folder,
        env={
            **environ,
            # What a script without a word about either would use.
            "OPENAI_BASE_URL": f"{server.url}/v1",
            "OPENAI_API_KEY": server.key,
            "NO_PROXY": "*",
            "LLM_USER_PATH": str(folder),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = process.communicate(timeout=TIMEOUT)
        end = f"it ended with status {process.returncode}"
    except subprocess.TimeoutExpired:
        end = f"it had not ended after {TIMEOUT:.0f} s"
        process.kill()
        output, errors = process.communicate()
    (folder / "errors.log").write_text(errors, encoding="utf-8")
    lines = [line for line in output.splitlines() if line.startswith('{"api"')]
    for line in lines:
        yield Outcome(client.name, **json.loads(line))
    if process.returncode or not lines:
        last = errors.strip().splitlines()[-1:]
        yield Outcome(client.name, "", "end", "\n  ".join([end, *last]), None)
