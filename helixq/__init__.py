"""The name under which HelixQ is installed, and where its packages are then.

The source tree has `cli`, `jobs`, `web`, … at its top. Such names belong to nobody in a `site-packages` folder that
many programs share: another distribution may have a `web` too, and would overwrite ours, or be overwritten. So a wheel has
them in ``helixq/packages``, and only the processes of `helixq` put that folder on their path.
"""

from __future__ import annotations

import sys
from pathlib import Path

#: The folder of the packages in an installed wheel. It does not exist in the source tree.
PACKAGES = Path(__file__).parent / "packages"


def find_packages() -> None:
    """Put the installed packages first on this process's path; change nothing in the source tree."""
    if PACKAGES.is_dir() and str(PACKAGES) not in sys.path:
        sys.path.insert(0, str(PACKAGES))
