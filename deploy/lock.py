"""Writes the requirements of the images, with hashes: `make requirements` runs it.

Versions come from constraints.txt, and what that does not have (NVIDIA's libraries) from what PyTorch asks for. The hashes
are those that the index has of every file of a release, so that the files suit all versions of Python and all processors.
PyTorch's builds without CUDA are in an index of their own; where that cannot be reached, torch-cpu.txt keeps its version
without a hash.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "deploy/requirements"
HEADER = "# Made by `make requirements` from pyproject.toml and constraints.txt.\n"
#: PyTorch's builds without CUDA.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
#: What these builds do without, and the builds themselves, which torch-cpu.txt has.
CUDA = re.compile(r"(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==")
#: What all images have: Parquet and zstd for exports, and traces.
EXTRAS = ("export", "otlp")


def compiled(*arguments: str, sources: str, given: str | None = None) -> str:
    """Return the requirements that uv finds, with hashes."""
    command = [sys.executable, "-m", "uv", "pip", "compile", sources, "--quiet", "--universal"]
    command += ["--generate-hashes", "--no-annotate", "--no-header", "--python-version", "3.11"]
    done = subprocess.run(
        [*command, "-c", "constraints.txt", *arguments],
        cwd=ROOT,
        input=given,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def with_extras(*names: str) -> str:
    extras = [argument for name in (*EXTRAS, *names) for argument in ("--extra", name)]
    return compiled(*extras, sources="pyproject.toml")


def without_cuda(requirements: str) -> str:
    """Take off requirements that only the builds with CUDA have. Lines with hashes belong to the line before them."""
    blocks = re.split(r"^(?=\S)", requirements, flags=re.MULTILINE)
    return "".join(block for block in blocks if not CUDA.match(block))


def torch_cpu() -> str:
    """Return the requirement of PyTorch without CUDA, with its hashes if its index can be reached."""
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    version = re.findall(r"^torch==([\d.]+)", constraints, re.MULTILINE)[0]
    requirement = f"torch=={version}+cpu"
    try:
        found = compiled("--no-deps", "--index-url", CPU_INDEX, sources="-", given=requirement)
    except subprocess.CalledProcessError:
        print(f"{CPU_INDEX} cannot be reached: torch-cpu.txt has no hash", file=sys.stderr)
        found = f"{requirement}\n"
    return found


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    build = "hatchling\n"
    for name, requirements in {
        "build": compiled(sources="-", given=build),
        "web": with_extras(),
        "worker-cuda": with_extras("worker", "quantization"),
        "worker-cpu": without_cuda(with_extras("worker")),
        "torch-cpu": torch_cpu(),
    }.items():
        (FOLDER / f"{name}.txt").write_text(HEADER + requirements, encoding="utf-8")


if __name__ == "__main__":
    main()
