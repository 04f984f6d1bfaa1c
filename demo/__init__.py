"""The demo's miniature HelixNet: its world, its recipe, its weights (``checkpoint/``)."""
