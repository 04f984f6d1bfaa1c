"""Read and write files and folders. A folder appears when it is complete."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from worker.checkpoints.errors import first_line
from worker.lora import LoraError

#: A folder with one of these is a checkpoint. ``--force`` replaces no other folder.
CONFIG_NAMES = ("config.json", "adapter_config.json")


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        LoraError: the file cannot be read, or is not a JSON object.
    """
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise LoraError(f"{file} cannot be read ({error_reason(error)})") from error
    except (ValueError, RecursionError) as error:
        raise LoraError(f"{file} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise LoraError(f"{file} is not a JSON object")
    return content


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with sorted keys.

    Raises:
        LoraError: the file cannot be written.
    """
    with explain_write_errors(file):
        file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


@contextmanager
def new_folder(path: Path, *, force: bool) -> Iterator[Path]:
    """Make a folder that appears at ``path`` only when it is complete and on the disk.

    The body writes into a hidden folder beside ``path``, which is renamed to ``path`` at the end. If
    the body fails, the hidden folder is removed.

    Args:
        path: the folder to make. Its parents are made too.
        force: replace an existing folder, if it holds a model or an adapter.

    Raises:
        LoraError: ``path`` exists and may not be replaced, or the folder cannot be written.
    """
    path = path.resolve()
    exists = _check_replaceable(path, force=force)
    part = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    try:
        with explain_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            part.mkdir()
        yield part
        with explain_write_errors(path):
            for file in part.iterdir():
                fsync(file)
            fsync(part)
            if exists:
                # Two renames, since there is no portable way to swap folders atomically.
                old = part.with_suffix(".old")
                path.rename(old)
                try:
                    part.rename(path)
                except BaseException:
                    old.rename(path)
                    raise
                shutil.rmtree(old)
            else:
                part.rename(path)
            fsync(path.parent)
    except LoraError as error:
        # Name the folder that the user asked for, not the hidden one.
        raise LoraError(str(error).replace(str(part), str(path))) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Make a file that appears at ``path`` only when it is complete; see `new_folder`."""
    part = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    try:
        yield part
        with explain_write_errors(path):
            fsync(part)
            part.replace(path)
            fsync(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def explain_write_errors(what: object) -> Iterator[None]:
    """Raise an `OSError` as a `LoraError` that says that ``what`` cannot be written."""
    try:
        yield
    except OSError as error:
        raise LoraError(
            f"{what} cannot be written ({error_reason(error)}); nothing was left behind"
        ) from error


def fsync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_replaceable(path: Path, *, force: bool) -> bool:
    """Return whether there is a folder to replace; raise `LoraError` if it may not be replaced."""
    if not path.exists():
        return False
    try:
        if not any(path.iterdir()):
            return False
    except OSError as error:
        raise LoraError(f"{path} cannot be the output folder ({error_reason(error)})") from error
    if not force:
        raise LoraError(f"{path} exists and is not empty; name another folder, or use --force")
    if not any((path / name).is_file() for name in CONFIG_NAMES):
        raise LoraError(
            f"{path} holds neither a model nor an adapter, so --force does not replace it"
        )
    return True


def error_reason(error: BaseException) -> str:
    """Return why a file cannot be used, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return first_line(error)
