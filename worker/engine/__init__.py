"""Turns prompts into text. Needs torch, transformers and PEFT alone.

`interface` is what a caller uses. `batching.engine` and `reference` implement it.
"""
