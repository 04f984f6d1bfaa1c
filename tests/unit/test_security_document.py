"""Each threat in SECURITY.md names the tests that show what is done against it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
ROWS = [
    line
    for line in TEXT.partition("## Threats")[2].splitlines()
    if line.startswith("| ") and not line.startswith("| threat")
]


def test_each_threat_has_a_test_that_exists() -> None:
    assert len(ROWS) > 30
    lost = []
    for row in ROWS:
        named = re.findall(r"\[`(test_\w+)`\]\(([\w./-]+)\)", row.split(" | ")[-1])
        if not named:
            lost.append(row)
        for test, file in named:
            path = ROOT / file
            if not path.exists() or f"def {test}(" not in path.read_text(encoding="utf-8"):
                lost.append(f"{test} in {file}")
    assert lost == []
