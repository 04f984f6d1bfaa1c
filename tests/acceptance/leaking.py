"""``python -m tests.acceptance.leaking web``: the program as it is, but each reply of the web leaves a file open."""

from __future__ import annotations

import os
from typing import Any

from cli.main import main


def arrange() -> None:
    """Have each reply leave a file open."""
    import flask

    process_response = flask.Flask.process_response

    def leak_and_process(self: flask.Flask, response: Any) -> Any:
        os.open(os.devnull, os.O_RDONLY)
        return process_response(self, response)

    flask.Flask.process_response = leak_and_process  # type: ignore[method-assign]  # on purpose


if __name__ == "__main__":
    arrange()
    main()
