"""Folders of models and adapters, fetched from the hub if need be."""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from worker.checkpoints.digests import FILES, PICKLES
from worker.checkpoints.errors import CheckpointError, first_line

log = logging.getLogger(__name__)


def resolve(reference: str, setting: str) -> Path:
    """Return the folder a reference means, fetching it from the hub if need be.

    Args:
        reference: a folder, or a hub id, with ``@revision`` if not the newest.
        setting: what names it, for the error.

    Raises:
        CheckpointError: it is neither.
    """
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return folder.absolute()
    if reference.startswith((".", "~", "/")) or reference.count("/") != 1:
        raise CheckpointError(f"{setting}: there is no folder {reference}")
    repo, _, revision = reference.partition("@")
    log.info("fetching %s from the hub (or its local cache)", reference)
    try:
        folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=[*FILES]))
        if not any(folder.glob("*.safetensors")):
            patterns = [*FILES, *PICKLES]
            folder = Path(
                snapshot_download(repo, revision=revision or None, allow_patterns=patterns)
            )
        return folder.absolute()
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError, HFValidationError) as error:
        raise CheckpointError(
            f"{setting}: {reference} is no folder here and cannot be fetched from the hub: "
            f"{first_line(error)}"
        ) from error
