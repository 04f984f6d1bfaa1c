"""``python -m cli`` is ``helixq``."""

from cli.main import main

main(prog_name="helixq")
