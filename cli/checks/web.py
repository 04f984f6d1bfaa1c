"""The web."""

from __future__ import annotations

import httpx2

from cli.checks.findings import Findings, error, ok, warning
from cli.database import open_database
from jobs.settings import Settings
from jobs.use_cases import keys

TIMEOUT = 5.0


def check(settings: Settings) -> Findings:
    """Whether the web responds, and can be used."""
    try:
        reply = httpx2.get(f"{settings.url}/readyz", timeout=TIMEOUT, trust_env=False)
        checks = reply.json()["checks"]
    except httpx2.TransportError as problem:
        yield error(
            f"no web answers at {settings.url} ({problem}): start `helixq web`, or correct HELIXQ_HOST and HELIXQ_PORT"
        )
        return
    except (ValueError, KeyError, TypeError):
        yield error(f"another program answers at {settings.url}: stop it, or set HELIXQ_PORT")
        return
    unready = [f"{name} ({state})" for name, state in checks.items() if state != "ok"]
    if unready:
        yield warning(f"the web at {settings.url} is not ready: see to {', '.join(unready)}")
    else:
        yield ok(f"the web at {settings.url} is ready")
    if settings.auth_required:
        with open_database(settings) as db:
            if not keys.any_valid(db):
                yield warning(
                    "API keys are required, and there is none: make one with `helixq keys create`"
                )
    elif not settings.loopback:
        yield warning(
            f"HELIXQ_AUTH is off and the web listens on {settings.host}, so everybody who can reach it may do everything: "
            "set HELIXQ_AUTH=required, or have a proxy check them"
        )
