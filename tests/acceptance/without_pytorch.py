"""``python -m tests.acceptance.without_pytorch COMMAND``: the program where PyTorch is not installed."""

from __future__ import annotations

import sys

#: Packages whose import fails.
for package in ("torch", "transformers", "peft"):
    sys.modules[package] = None  # type: ignore[assignment]  # None makes the import fail

from cli.__main__ import run

if __name__ == "__main__":
    run()
