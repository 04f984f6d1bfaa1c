"""What `pip install 'helixq[…]'` brings may be used and passed on by everybody."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any

from packaging.requirements import Requirement

#: The extras for users. Those for development bring nothing that is passed on.
EXTRAS = ("", "embedded", "eval", "export", "otlp", "learn", "quantization")
#: Licences that ask for no more than naming them, and weak copyleft of packages that we do not change.
ALLOWED = re.compile(
    r"(0BSD|Apache|BSD|BSL-1\.0|CC0-1\.0|CNRI-Python|ISC|LGPL-3\.0-only|LLVM-exception|MIT|MPL|"
    r"Mozilla Public License|PSF|Python Software Foundation|Unlicense|Zlib|Zope Public)",
    re.IGNORECASE,
)
FORBIDDEN = re.compile(r"\b(A?GPL|Affero|SSPL|BUSL|non-?commercial)\b", re.IGNORECASE)
#: Of CUDA, which PyTorch brings: NVIDIA's own terms allow to use them.
_NVIDIA = re.compile(r"(nvidia|cuda)-")


def installed() -> dict[str, Distribution]:
    """Return what HelixQ needs, directly or not, as far as it is installed here."""
    found: dict[str, Distribution] = {}
    waiting = [("helixq", extra) for extra in EXTRAS]
    seen = set(waiting)
    while waiting:
        name, extra = waiting.pop()
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # Of another system, or of an extra that is not installed.
        for text in found[name].requires or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                for each in ("", *needed.extras):
                    if (needed.name.lower(), each) not in seen:
                        seen.add((needed.name.lower(), each))
                        waiting.append((needed.name.lower(), each))
    return found


def licence(package: Distribution) -> str:
    """Return a package's licence, as it names it."""
    about: Any = package.metadata
    named = [text for text in about.get_all("Classifier", []) if text.startswith("License ::")]
    return str(about.get("License-Expression") or "; ".join(named) or about.get("License") or "")


def test_licences_are_known_and_allow_everything() -> None:
    packages = installed()
    assert {"torch", "flask", "psycopg", "celery"} <= packages.keys()
    wrong = {
        name: licence(package)[:80]
        for name, package in packages.items()
        if not _NVIDIA.match(name)
        and (not ALLOWED.search(licence(package)) or FORBIDDEN.search(licence(package)))
    }
    assert wrong == {}
