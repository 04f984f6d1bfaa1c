"""How a process starts another one of this program."""

from __future__ import annotations

import sys

#: The command that runs `helixq` with this interpreter. ``-P``: what is in the working directory must not take the
#: place of our modules.
PROGRAM = (sys.executable, "-P", "-m", "helixq")
