"""Forward passes over mixed batches: Llama's architecture, and transformers' own models."""
