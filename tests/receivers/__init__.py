"""Real receivers of traces. `make receivers` exports histories to them, and looks for what should be there."""
