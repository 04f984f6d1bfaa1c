"""What the settings name as checkpoints: folders, or hub ids with optional ``@revision``. Imports no library."""

from __future__ import annotations

from pathlib import Path

from jobs.settings import Settings
from worker.checkpoints.errors import CheckpointError

#: What errors call the base.
BASE_SETTING = "HELIXQ_BASE_MODEL"


def references(settings: Settings) -> dict[str, str]:
    """Return the references of base and adapters by the names that errors give them."""
    adapters = {adapter_setting(role): name for role, name in settings.adapters.items()}
    return {BASE_SETTING: settings.base_model, **adapters}


def adapter_setting(role: str) -> str:
    """Return what errors call the adapter of a role."""
    return f"HELIXQ_ADAPTERS ({role})"


def find_folder(reference: str, setting: str) -> Path | None:
    """Return the folder that a reference names; None if it is a hub id.

    Args:
        reference: a folder, or a hub id with optional ``@revision``.
        setting: the setting or option that has the reference, for errors.

    Raises:
        CheckpointError: it is no hub id, and there is no such folder.
    """
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return folder.absolute()
    if not is_hub_id(reference):
        raise CheckpointError(f"{setting}: there is no folder {reference}")
    return None


def check_folders(settings: Settings) -> None:
    """Check that the folders of base and adapters are there.

    Raises:
        CheckpointError: one is not.
    """
    for setting, reference in references(settings).items():
        find_folder(reference, setting)


def is_hub_id(reference: str) -> bool:
    """Return whether a reference names a repository of the hub, unless there is such a folder."""
    return not reference.startswith((".", "~", "/")) and reference.count("/") == 1
