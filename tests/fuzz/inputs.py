"""Inputs for parsers: bytes, and changes of inputs that they accept, as text and as JSON."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

#: What parsers stumble over.
TOKENS = (
    *(b"\0", b"\xff", b"\xed\xa0\x80", b"\r\n", b"\n\n", b"\xe2\x80\xa8", b"\\u0000", b"\\ud800"),
    *(b'"', b"'", b"[" * 200, b'{"a":' * 200, b"[]", b"{}", b"null", b"true", b"NaN", b"Infinity"),
    *(
        b"-0",
        b"1e999",
        b"9" * 30,
        b"9" * 5000,
        b"99999999999",
        b"-1",
        b"1.0",
        b"+",
        b"=",
        b"\xe2\x80\x94 ",
    ),
    *(b"..", b"/", b"%00", b"x" * 2000, "٣".encode(), "\u202e".encode(), "ſ".encode()),
)
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**53,
        2**63,
        10**25,
        0.5,
        1e308,
        "",
        "\0",
        "x",
        "\ud800",
    ),
    *("a" * 5000, [], {}, [[]], [None], {"": None}, {"a": {"b": "c"}}, ["x", 1], "resp_1", "None"),
    *("2026-01-02T03:04:05Z", "9999-12-31T23:59:59.999999+00:00", "0001-01-01T00:00:00-23:59"),
)


@st.composite
def changed_bytes(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """Some input with a few changes anywhere."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 5))):
        start = draw(st.integers(0, len(data)))
        end = draw(
            st.integers(start, min(len(data), start + draw(st.sampled_from((0, 1, 8, 4000)))))
        )
        data = data[:start] + draw(st.sampled_from(TOKENS) | st.binary(max_size=8)) + data[end:]
    return data


@st.composite
def changed_json(draw: st.DrawFn, seeds: tuple[Any, ...]) -> bytes:
    """Some JSON with a few other values, names and parts."""
    value = json.loads(json.dumps(draw(st.sampled_from(seeds))))
    for _ in range(draw(st.integers(1, 4))):
        holder: Any = {"": value}
        key: Any = ""
        # Down to some value.
        for _ in range(draw(st.integers(0, 6))):
            inner: Any = holder[key]
            if not isinstance(inner, dict | list) or not inner:
                break
            holder = inner
            keys = sorted(inner) if isinstance(inner, dict) else range(len(inner))
            key = draw(st.sampled_from(list(keys)))
        match draw(st.sampled_from(("change", "remove", "rename", "wrap"))):
            case "change":
                holder[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
            case "remove" if key != "":
                del holder[key]
            case "rename" if isinstance(holder, dict) and key != "":
                holder[draw(st.sampled_from(("", "odd", "\0", "type", "id")))] = holder.pop(key)
            case _:
                holder[key] = [holder[key]]
        if "" in holder and key == "":
            value = holder[""]
    return json.dumps(value).encode()


def inputs(seeds: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    """Return what makes inputs of a parser, given some that it accepts."""
    made = [st.binary(max_size=200), changed_bytes(seeds), changed_bytes(seeds)]
    objects = tuple(value for seed in seeds if (value := _json(seed)) is not None)
    if objects:
        made += [changed_json(objects)] * 3
    return st.one_of(made)


def _json(seed: bytes) -> Any:
    try:
        value = json.loads(seed)
    except ValueError:
        return None
    return value if isinstance(value, dict | list) else None
