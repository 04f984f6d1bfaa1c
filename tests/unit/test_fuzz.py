"""Every parser of untrusted input raises its documented errors and no others, whatever it gets."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.inputs import inputs
from tests.fuzz.targets import HISTORY, TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_raises_its_own_errors_alone(name: str) -> None:
    target = TARGETS[name]
    target.run(target.seeds[0])

    @settings(max_examples=80, suppress_health_check=list(HealthCheck), database=None)
    @given(inputs(target.seeds))
    def check(data: bytes) -> None:
        target(data)

    check()


#: Inputs that made a parser raise something else, before it was mended.
FOUND = {
    "retry-after": (
        b"Mon, 1 Jan 99999999999999999999 00:00:00 GMT",
        b"Mon, 1 Jan 9999 00:00:00 +999999999999",
        b"Mon, 1 Jan 0001 00:00:00 +2359",
        "\u202e".encode(),
        b"\0",
    ),
    "engine-error": (b'{"detail":[{"loc":true,"msg":"b"}]}', b'{"detail":[{"loc":7,"msg":"b"}]}'),
    "restore": tuple(
        json.dumps({name: value for name, value in HISTORY.items() if name != left_out}).encode()
        for left_out in HISTORY
    ),
    "entry": (b'{"type":' + b"[" * 100_000,),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_fuzzing_has_found_stays_mended(name: str) -> None:
    for data in FOUND[name]:
        TARGETS[name](data)
