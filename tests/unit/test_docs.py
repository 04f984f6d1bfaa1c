"""Everything that the documents refer to exists: links, anchors, files, tests, commands, options and settings."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import click
import pytest

from cli.commands import COMMANDS
from cli.main import main
from jobs.settings import PREFIX, SECRETS, Settings
from jobs.webhooks.events import EVENT_TYPES

ROOT = Path(__file__).parent.parent.parent
DOCS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob(".github/*.md")])
NAMES = [str(file.relative_to(ROOT)) for file in DOCS]

_FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
_CODE = re.compile(r"`([^`\n]+)`")
_HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
_MODULE = re.compile(r"(?:jobs|web|worker|cli|migrations|demo)(?:\.\w+)+")
_FILE = re.compile(r"^(?:tests|worker|web|jobs|cli|demo|migrations|docs)/[\w./-]+$")


@cache
def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@cache
def sources() -> str:
    """Return the source of all tests."""
    return "\n".join(f.read_text(encoding="utf-8") for f in (ROOT / "tests").rglob("*.py"))


@cache
def prose(name: str) -> str:
    """Return a document without its blocks of code."""
    return _FENCE.sub("", text(name))


def code(name: str) -> Iterator[str]:
    """Yield each piece of inline code, and each logical line of the blocks of code."""
    yield from _CODE.findall(prose(name))
    for block in _FENCE.findall(text(name)):
        yield from block.replace("\\\n", " ").splitlines()


@cache
def anchors(file: Path) -> set[str]:
    """Return the anchors that GitHub gives a document's headings."""
    slugs: set[str] = set()
    for heading in _HEADING.findall(_FENCE.sub("", file.read_text(encoding="utf-8"))):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = 0
        while (numbered := f"{slug}-{number}" if number else slug) in slugs:
            number += 1
        slugs.add(numbered)
    return slugs


@pytest.mark.parametrize("name", NAMES)
def test_link_targets_exist(name: str) -> None:
    lost = []
    for link in ("".join(pair) for pair in _LINK.findall(prose(name))):
        if re.match(r"\w+:", link):
            continue  # an external link
        path, _, anchor = unquote(link).partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        if not file.exists() or (anchor and anchor not in anchors(file)):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize("name", NAMES)
def test_files_and_tests_exist(name: str) -> None:
    lost = []
    for piece in _CODE.findall(prose(name)):
        path = piece.partition(":")[0]
        if re.fullmatch(r"test_\w+", piece):
            missing = f"def {piece}(" not in sources() and not list(
                ROOT.glob(f"tests/*/{piece}.py")
            )
        else:
            is_built = path.startswith("demo/build")
            missing = bool(_FILE.match(path)) and not is_built and not (ROOT / path).exists()
        if missing:
            lost.append(piece)
    assert lost == []


@pytest.mark.parametrize("name", NAMES)
def test_modules_and_what_is_in_them_exist(name: str) -> None:
    """Names such as `jobs.settings.load`. A column of the table of jobs is named as `Job.model`."""
    lost = []
    for piece in filter(_MODULE.fullmatch, _CODE.findall(prose(name))):
        path, parts = ROOT, piece.split(".")
        while parts and ((path / parts[0]).is_dir() or (path / f"{parts[0]}.py").exists()):
            path /= parts.pop(0)
        files = [f for f in (path.with_suffix(".py"), path / "__init__.py") if f.exists()]
        source = "".join(file.read_text(encoding="utf-8") for file in files)
        if not all(re.search(rf"\b{part}\b", source) for part in parts):
            lost.append(piece)
    assert lost == []


def test_the_packages_of_the_architecture_exist() -> None:
    named = re.search(r"^jobs/ .*?^```", text("docs/architecture.md"), re.MULTILINE | re.DOTALL)
    assert named is not None
    package, lost, count = "", [], 0
    for line in named[0].splitlines():
        if match := re.match(r"(\w+)/ ", line):
            package = match[1]
        elif match := re.match(r"  (\w+/?(?:, \w+/?)*)  ", line):
            for name in match[1].replace("/", "").split(", "):
                path = ROOT / package / name
                count += 1
                if not (path.is_dir() or path.with_suffix(".py").exists()):
                    lost.append(f"{package}/{name}")
    assert lost == []
    assert count > 50


@pytest.mark.parametrize("name", NAMES)
def test_commands_exist(name: str) -> None:
    targets = re.findall(r"^(\w+):", text("Makefile"), re.MULTILINE)
    lost = []
    for line in code(name):
        if (target := re.match(r"(?:\w+=\S+ )*make ([a-z]+)\b", line)) and target[1] not in targets:
            lost.append(line)
        if (module := re.search(r"\bpython3? -m ([\w.]+)", line)) and not is_module(module[1]):
            lost.append(line)
        commands = re.findall(r"(?:^|[\s/])helixq ((?:--)?[a-z][^|;`]*)", line)
        if not all(accepted(words.split("  #")[0].split()) for words in commands):
            lost.append(line)
    assert lost == []


def is_module(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def accepted(words: list[str]) -> bool:
    """Whether the program has the command of a line, and its options."""
    command: click.Command = main
    while words and isinstance(command, click.Group) and not words[0].startswith("-"):
        found = command.get_command(click.Context(command), words.pop(0))
        if found is None:
            return False
        command = found
    options = {"--help", "--version"} | {o for p in command.params for o in p.opts}
    return all(word.split("=")[0] in options for word in words if word.startswith("--"))


@pytest.mark.parametrize("name", NAMES)
def test_settings_exist(name: str) -> None:
    named = set(re.findall(rf"\b{PREFIX}([A-Z_]+[A-Z])\b", text(name)))
    files = {f"{secret}_file" for secret in SECRETS}
    assert {n.lower() for n in named} - set(Settings.model_fields) - files == set()


def test_the_table_of_errors_has_every_code() -> None:
    given = set()
    for file in [*ROOT.glob("jobs/**/*.py"), *ROOT.glob("web/**/*.py")]:
        source = file.read_text(encoding="utf-8")
        given |= set(re.findall(r'\bcode="([a-z_]+)"', source))
        given |= set(re.findall(r'StatisticsError\(\s*"\w+",\s*"(\w+)"', source))
    # Those of a batch's lines and of streams are described where these are.
    pages = ["docs/http-errors.md", "docs/http-batches.md", "docs/http-chat.md"]
    described = {piece for page in pages for piece in _CODE.findall(prose(page))}
    assert given - described == set()


def test_the_table_of_events_has_every_type() -> None:
    rows = re.findall(
        r"^\| (`response\..+?|`batch\..+?) \|", text("docs/webhooks.md"), re.MULTILINE
    )
    assert {name for row in rows for name in _CODE.findall(row)} == {*EVENT_TYPES}


def test_every_command_is_shown() -> None:
    shown = "\n".join(line for name in NAMES for line in code(name))
    lost = [path for path in COMMANDS if not re.search(rf"\bhelixq {path}\b", shown)]
    assert lost == []


def test_the_map_has_every_page() -> None:
    linked = {link.partition("#")[0] for link, _ in _LINK.findall(prose("docs/index.md"))}
    pages = {file.name for file in ROOT.glob("docs/*.md")} - {"index.md"}
    assert pages - linked == set()
    # So has the site that `make docs` builds.
    assert pages - set(re.findall(r": (\S+\.md)$", text("mkdocs.yml"), re.MULTILINE)) == set()


def test_the_glossarys_terms_are_in_order_and_in_use() -> None:
    terms = [term.lower() for term in re.findall(r"^## (.+)$", text("docs/glossary.md"), re.M)]
    assert terms == sorted(set(terms))
    others = "\n".join(prose(n) for n in NAMES if n != "docs/glossary.md").lower()
    assert [t for t in terms if not re.search(rf"\b{t}s?\b", others)] == []
