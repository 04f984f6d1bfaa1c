"""The address that the web listens on.

`helixq up` checks it before it starts anything, and so does not import the web.
"""

from __future__ import annotations

import errno
import socket

from jobs.errors import UserError
from jobs.settings import Settings


class AddressError(UserError):
    """The web cannot listen on the address of the settings."""


def bind(settings: Settings) -> socket.socket:
    """Return a socket that is bound to the address and does not listen yet.

    Raises:
        AddressError: the address is in use or does not belong to this machine.
    """
    try:
        addresses = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        # Prefer IPv4, as people expect of localhost.
        family, kind, _, _, address = min(addresses, key=lambda info: info[0] != socket.AF_INET)
        listener = socket.socket(family, kind)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        listen_address = f"{settings.host}:{settings.port}"
        if error.errno == errno.EADDRINUSE:
            raise AddressError(
                f"{listen_address} is in use by another program: stop it, or set HELIXQ_PORT"
            ) from error
        raise AddressError(
            f"cannot listen on {listen_address} ({error.strerror}): check HELIXQ_HOST and HELIXQ_PORT"
        ) from error
    return listener
