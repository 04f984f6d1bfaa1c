"""Adapters on the disk, changed for a test."""

from __future__ import annotations

import json
from pathlib import Path


def change_config(adapter: Path, **options: object) -> None:
    """Set options in an adapter's config."""
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **options}))
