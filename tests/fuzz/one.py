"""``python -m tests.fuzz.one TARGET SECONDS``: fuzz one parser in this process, which ends at its first failure."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings


def guided(name: str, seconds: float) -> None:
    """Fuzz a target with atheris, which ends the process."""
    import atheris

    with atheris.instrument_imports(include=["jobs", "web.multipart", "web.request_body"]):
        from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(target.seeds):
            (Path(corpus) / str(number)).write_bytes(seed)
        options = [f"-max_total_time={seconds:.0f}", "-max_len=20000", "-verbosity=0"]
        atheris.Setup([sys.argv[0], corpus, *options], target)
        atheris.Fuzz()


def chosen(name: str, seconds: float) -> None:
    """Fuzz a target with hypothesis."""
    from tests.fuzz.inputs import inputs
    from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    end = time.monotonic() + seconds

    @settings(
        max_examples=200,
        derandomize=False,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs(target.seeds))
    def check(data: bytes) -> None:
        target(data)

    while time.monotonic() < end:
        check()


if __name__ == "__main__":
    run = guided if importlib.util.find_spec("atheris") else chosen
    run(sys.argv[1], float(sys.argv[2]))
