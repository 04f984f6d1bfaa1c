"""``python -m tests.acceptance.version_after_next migrate``: its migration removes what the next version does not need."""

from __future__ import annotations

from cli.main import main
from tests.acceptance import next_version, paced

if __name__ == "__main__":
    next_version.arrange(versions=2)
    paced.arrange()
    main()
