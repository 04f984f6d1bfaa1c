"""Clients of other HTTP servers. This module imports slowly: import it where it is used, if that is seldom."""

from __future__ import annotations

import ssl
from typing import Any

import httpx2


def make_client(*, base_url: str = "", **options: Any) -> httpx2.Client:
    """Return a client that takes nothing of the environment but SSL_CERT_FILE and SSL_CERT_DIR: no proxies, no .netrc.

    Args:
        base_url: of all requests. The client of an ``http://`` one trusts no certificate: to read those of all
            authorities takes longer than most requests of a command.
        options: others of `httpx2.Client`.
    """
    if httpx2.URL(base_url).scheme == "http":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    else:
        context = httpx2.create_ssl_context()
    return httpx2.Client(base_url=base_url, verify=context, trust_env=False, **options)
