"""Find the folders of models and adapters, and download them from the hub if needed."""

from __future__ import annotations

import logging
import re
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from worker.checkpoints.digests import ALLOW_PATTERNS, IGNORE_PATTERNS, PICKLE_PATTERNS
from worker.checkpoints.errors import CheckpointError, first_line
from worker.checkpoints.references import find_folder

log = logging.getLogger(__name__)

#: Of a folder or a repository without other weights.
GGUF_ALONE = (
    "has a model in llama.cpp's format (GGUF); give the one that it was made from, "
    "or serve it with llama.cpp and set HELIXQ_ENGINE=openai"
)
#: Where a snapshot is in the hub's cache: below the hash of its commit.
_SNAPSHOT = re.compile(r".*/snapshots/([0-9a-f]{40})")


def resolve(reference: str, setting: str, *, pickles: bool = False) -> Path:
    """Return the folder of a model or an adapter, downloaded from the hub if needed.

    Args:
        reference: a folder, or a hub id with optional ``@revision``.
        setting: the setting or option that has the reference, for errors.
        pickles: whether a repository of the hub may have its weights as pickles alone, which can run code
            where their reader has a fault.

    Raises:
        CheckpointError: the folder does not exist, and the hub id cannot be downloaded, or has no
            safetensors.
    """
    here = find_folder(reference, setting)
    if here is not None:
        return here
    repo, _, revision = reference.partition("@")
    log.info("fetching %s from the hub (or its local cache)", reference)
    try:
        folder = _download(repo, revision, ALLOW_PATTERNS)
        if pickles and not any(folder.glob("*.safetensors")):
            folder = _download(repo, revision, (*ALLOW_PATTERNS, *PICKLE_PATTERNS))
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError, HFValidationError) as error:
        raise CheckpointError(
            f"{setting}: {reference} is no folder here and cannot be fetched from the hub: "
            f"{first_line(error)}"
        ) from error
    readable = ("*.safetensors", *PICKLE_PATTERNS) if pickles else ("*.safetensors",)
    if not any(any(folder.glob(pattern)) for pattern in readable):
        if other := _other_weights(repo, revision):
            raise CheckpointError(f"{setting}: {reference} {other}")
        if not pickles:
            raise CheckpointError(
                f"{setting}: {reference} has no safetensors files at the hub, and pickles of the hub are not "
                f"loaded; convert an adapter once with `helixq lora convert {reference}`, or give a folder"
            )
    return folder.absolute()


def _other_weights(repo: str, revision: str) -> str:
    """Return what weights a repository has that are not downloaded, and what to do; empty for none, and for pickles."""
    try:
        names = HfApi().list_repo_files(repo, revision=revision or None)
    except (OSError, HfHubHTTPError):
        # The hub is away, and the snapshot in the cache does not tell what else there is.
        return ""
    files = [PurePosixPath(name) for name in names]
    suffixes = {file.suffix for file in files if len(file.parts) == 1}
    if ".bin" in suffixes:
        return ""
    if ".gguf" in suffixes:
        return GGUF_ALONE
    folders = sorted({str(file.parent) for file in files if file.suffix == ".safetensors"})
    if folders:
        return (
            f"has its safetensors files in folders within ({', '.join(folders)}), which are not downloaded; "
            "download one with `hf download`, and give it as a folder"
        )
    return ""


def _download(repo: str, revision: str, patterns: tuple[str, ...]) -> Path:
    return Path(
        snapshot_download(
            repo,
            revision=revision or None,
            allow_patterns=[*patterns],
            ignore_patterns=[*IGNORE_PATTERNS],
        )
    )


def commit_of(folder: Path) -> str | None:
    """Return the hash of the commit that a folder of the hub's cache is a snapshot of; None for other folders."""
    match = _SNAPSHOT.fullmatch(folder.as_posix())
    return match and match[1]
