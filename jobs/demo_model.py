"""What the demo model can do. It refuses all other questions, so users are told before they ask."""

from __future__ import annotations

from jobs.settings import DEMO_CHECKPOINT

#: The demo model's base, as workers name it.
BASE = str(DEMO_CHECKPOINT / "base")
ABILITY = "adds numbers of up to three digits and multiplies numbers of up to two"
EXAMPLES = ("What is 47 * 36?", "What is 347 + 589?", "What is 8 * 7?")
