"""Counting tokens with the tokenizers of the workers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jobs.protocol.tokens import TokenCounter


def test_before_the_first_worker_nothing_is_counted(counter: TokenCounter) -> None:
    assert counter.count(["Why?"]) is None


def test_each_text_is_counted(counter: TokenCounter, serve: Callable[[int], None]) -> None:
    assert counter.count([]) is None
    serve(100)
    assert counter.count(["one two three", "", "one"]) == ([3, 0, 1], 100)


def test_the_newest_worker_counts(
    counter: TokenCounter, serve: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(100)
    assert counter.count(["one"]) == ([1], 100)
    serve(200)
    assert counter.count(["one"]) == ([1], 100), "it is not read for each request"
    monkeypatch.setattr(TokenCounter, "REFRESH", 0.0)
    assert counter.count(["one"]) == ([1], 200)
