"""JSON as RFC 8785 spells it, and a spelling for the values that it does not cover."""

from __future__ import annotations

import json
from typing import Any

import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.tlog.canonical import canonical

texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.floats(-1, 1)
    | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
)


@settings(max_examples=150, deadline=None)
@given(value=values)
def test_canonical_json_is_that_of_the_rfc(value: Any) -> None:
    assert canonical(value) == rfc8785.dumps(value)


def test_values_beyond_the_rfc_are_recorded_as_texts() -> None:
    assert canonical({"a": [2**60, -(2**70), 2**53 - 1, True]}) == (
        b'{"a":["1152921504606846976","-1180591620717411303424",9007199254740991,true]}'
    )
    assert canonical([float("nan"), float("-inf"), 0.5]) == b'["nan","-inf",0.5]'
    deep: Any = "x"
    for _ in range(500):
        deep = {"b": [deep]} if len(str(deep)) < 400 else [deep]
    assert canonical(deep) == json.dumps(json.dumps(deep, sort_keys=True)).encode()
