"""What programs and tests need is imported once, before it is forked: see `tests.fork_server`."""

from __future__ import annotations

import cli.main
import cli.parts
import web.serve
import worker.local_engine
import worker.main
