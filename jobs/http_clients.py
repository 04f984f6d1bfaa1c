"""Clients of other HTTP servers. It takes a while to import, so that those who seldom need it import it late."""

from __future__ import annotations

from typing import Any

import httpx2


def make_client(**options: Any) -> httpx2.Client:
    """Return a client that takes nothing of the environment but SSL_CERT_FILE and SSL_CERT_DIR: no proxies, no .netrc.

    Args:
        options: those of `httpx2.Client`.
    """
    return httpx2.Client(verify=httpx2.create_ssl_context(), trust_env=False, **options)
