"""Measures what critic and regenerator bring, and what the LoRA form loses."""
