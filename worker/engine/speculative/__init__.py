"""Speculative decoding: draft tokens that the next step verifies."""
