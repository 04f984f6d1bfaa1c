"""The results, as the tables of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

#: Fields of a table's lines: the column's title, and its format.
Columns = Mapping[str, tuple[str, str]]

TEXTS: Columns = {
    "dtype": ("dtype", "{}"),
    "window": ("window", "{}"),
    "variant": ("computed", "{}"),
    "drawn": ("drawn", "{}"),
    "texts": ("texts", "{}"),
    "equal": ("the same", "{}"),
}
DECODE: Columns = {
    "sequences": ("sequences at once", "{}"),
    "adapters": ("adapters", "{}"),
    "tokens_a_second": ("new tokens a second", "{:,.0f}"),
    "step_ms": ("ms a step", "{:.2f}"),
    "share_of_limit": ("of the limit", "{:.0%}"),
    "ratio": ("with adapters", "{:.1%}"),
}
FOUR_BIT: Columns = {
    "sequences": ("sequences at once, 4 bits", "{}"),
    "tokens_a_second": ("new tokens a second", "{:,.0f}"),
    "times": ("16 bits", "{:.2f} times"),
    "step_ms": ("ms a step", "{:.2f}"),
    "share_of_limit": ("of the limit", "{:.0%}"),
    "weights_gb": ("GB of weights", "{:.1f}"),
    "without_cache_gb": ("GB allocated, but for the cache", "{:.1f}"),
    "change_of_scores": ("change of scores", "{:.1%}"),
}
JOBS: Columns = {
    "at_once": ("jobs at once", "{}"),
    "jobs": ("jobs", "{}"),
    "jobs_an_hour": ("jobs an hour", "{:,.0f}"),
    "tokens_a_second": ("new tokens a second", "{:,.0f}"),
    "prompt_tokens_a_second": ("prompt tokens a second", "{:,.0f}"),
    "first_token": ("first token, s", "{:.2f}"),
    "cpu_share": ("of a core", "{:.0%}"),
    "gpu_share": ("of the GPU", "{:.0%}"),
}
PROMPTS: Columns = {
    "prompts": ("prompts", "{}"),
    "length": ("tokens of each", "{:,}"),
    "tokens_a_second": ("tokens a second", "{:,.0f}"),
    "share_of_limit": ("of the limit", "{:.0%}"),
}


def tables(lines: Iterable[Mapping[str, Any]]) -> str:
    """Return the results of texts, decoding, 4 bits, jobs and prompts as tables of Markdown."""
    lines = [line for line in lines if "skipped" not in line]
    kinds = [
        ("check", "texts", TEXTS),
        ("measure", "decode", DECODE),
        ("measure", "four_bit", FOUR_BIT),
        ("measure", "jobs", JOBS),
        ("measure", "prompts", PROMPTS),
    ]
    sections = []
    for key, name, columns in kinds:
        if rows := [line for line in lines if line.get(key) == name]:
            sections.append(_table(columns, rows))
    return "\n\n".join(sections)


def _table(columns: Columns, rows: Iterable[Mapping[str, Any]]) -> str:
    titles = [title for title, _ in columns.values()]
    lines = [titles, ["---"] * len(titles)]
    for row in rows:
        cells = [(row.get(name), form) for name, (_, form) in columns.items()]
        lines.append(["–" if value is None else form.format(value) for value, form in cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
