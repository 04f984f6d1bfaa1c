"""The metrics, for Prometheus."""

from __future__ import annotations

import socket

import httpx2

from cli.checks.findings import Finding, Findings, error, ok, warning
from jobs.settings import Settings

TIMEOUT = 5.0
#: A metric that only a worker has, and one that only a web has.
OF_WORKER, OF_WEB = "helixq_worker_info", "helixq_build_info"


def check(settings: Settings) -> Findings:
    """Whether the web serves metrics, and a worker too, or can once it starts."""
    yield from _web(settings)
    if settings.metrics_port is not None:
        yield _worker(settings, settings.metrics_port)


def _web(settings: Settings) -> Findings:
    key = settings.api_key
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    url = f"{settings.url}/metrics"
    try:
        reply = httpx2.get(url, headers=headers, timeout=TIMEOUT, trust_env=False)
    except httpx2.HTTPError:
        return  # The check of the web says it.
    if reply.status_code in (401, 403):
        yield ok(f"{url} asks for a key, and Prometheus needs one with the scope audit")
    elif reply.status_code == 200 and OF_WEB in reply.text:
        yield ok(f"{url} has the metrics of the service")
    else:
        yield error(
            f"{url} replies with the status {reply.status_code} and no metrics: look at the log of the web"
        )


def _worker(settings: Settings, port: int) -> Finding:
    place = f"{settings.host}:{port}"
    try:
        reply = httpx2.get(f"{settings.url_of(port)}/metrics", timeout=TIMEOUT, trust_env=False)
    except (httpx2.ConnectError, httpx2.ConnectTimeout):
        return _free(settings.host, port)
    except httpx2.HTTPError:
        reply = None
    if reply is None or "python_info" not in reply.text:
        return error(f"another program answers at {place}: stop it, or set HELIXQ_METRICS_PORT")
    if OF_WORKER not in reply.text:
        return warning(f"a worker that is not ready serves metrics at {place}: wait until it is")
    return ok(f"a worker serves metrics at {place}")


def _free(host: str, port: int) -> Finding:
    """Say whether a worker could serve metrics where nobody does."""
    try:
        for family, kind, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
            break
    except OSError as problem:
        return error(
            f"no worker can serve metrics at {host}:{port} ({problem.strerror}): correct HELIXQ_HOST and "
            "HELIXQ_METRICS_PORT"
        )
    return ok(f"{host}:{port} is free for a worker's metrics")
