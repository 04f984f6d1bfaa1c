"""LoRA adapters inside a mixed batch."""
