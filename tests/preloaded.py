"""What programs and tests need is imported once, before it is forked: see `tests.fork_server`."""

from __future__ import annotations

import cli.database
import cli.keys
import cli.main
import cli.parts
import cli.questions
import cli.running
import cli.up
import web.serve
import worker.local_engine
import worker.main
