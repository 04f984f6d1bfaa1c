"""``python -m demo``: make the demo's checkpoints where the settings' defaults look for them."""

from pathlib import Path

from demo.random_weights import build

if __name__ == "__main__":
    folder = Path(__file__).parent / "checkpoint"
    build(folder)
    print(f"made the demo's base and adapters in {folder}")
