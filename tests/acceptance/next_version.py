"""``python -m tests.acceptance.next_version migrate``: a next version, whose migration only adds to the schema.

The program as it is, with one more migration. It stands for a release that does not exist yet.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import migrations
from cli.main import main
from tests.acceptance import paced

FOLDER = Path(__file__).parent / "next_migrations"


def arrange(versions: int = 1) -> None:
    """Add the migrations of so many next versions."""
    make_config = migrations._config
    folders = [Path(migrations.__file__).parent / "versions"]
    folders += [FOLDER / str(number) for number in range(1, versions + 1)]

    def config(connection: Any = None) -> Any:
        made = make_config(connection)
        made.set_main_option("path_separator", "os")
        made.set_main_option("version_locations", os.pathsep.join(map(str, folders)))
        return made

    migrations._config = config


if __name__ == "__main__":
    arrange()
    paced.arrange()
    main()
