"""``python -m tests.fuzz [--seconds N] [TARGET …]``: try inputs of each parser for some time.

With atheris, what comes next follows from the code that the last ones reached. Without it, hypothesis chooses.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from tests.fuzz.targets import TARGETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30, help="for each target")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - TARGETS.keys():
        parser.error(f"there is no target {', '.join(sorted(unknown))}")
    failed = []
    for name in arguments.targets or TARGETS:
        print(f"{name}: {arguments.seconds:g} s", flush=True)
        command = [sys.executable, "-m", "tests.fuzz.one", name, str(arguments.seconds)]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
