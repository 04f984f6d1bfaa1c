"""Turns prompts into text. Needs torch, transformers and peft alone.

`interface` is what the worker talks to; each other module is one way to serve it.
"""
