"""A real nginx in front of a web, with the configuration of docs/deployment-proxy.md."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import CERTIFICATE, KEY, make_certificate
from tests.servers import Process, free_port, start

DOCUMENT = Path(__file__).parent.parent / "docs" / "deployment-proxy.md"
#: What a distribution's nginx.conf has around a site, with paths that belong to an ordinary user.
CONFIGURATION = """
daemon off;
pid {folder}/nginx.pid;
error_log stderr notice;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{site}
}}
"""


@dataclass(frozen=True)
class Nginx:
    """Where it listens, and the file of the authority that signed its certificate."""

    port: int
    authority: Path
    process: Process

    @property
    def host(self) -> str:
        return f"localhost:{self.port}"

    @property
    def url(self) -> str:
        return f"https://{self.host}"


def documented() -> str:
    """Return the configuration of the document."""
    found = re.findall(
        r"^```nginx\n(.*?)^```$", DOCUMENT.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert len(found) == 1
    return str(found[0])


@contextmanager
def nginx(web_port: int, change: Callable[[str], str] = lambda site: site) -> Iterator[Nginx]:
    """Start it with the documented site at other ports, names and paths; skip the test where it is not installed.

    Args:
        web_port: where the web listens on 127.0.0.1.
        change: makes another site of the documented one.
    """
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        if os.environ.get("REQUIRE_NGINX"):
            pytest.fail("no nginx is installed")
        pytest.skip("no nginx is installed")
    port, site = free_port(), change(documented())
    with tempfile.TemporaryDirectory(prefix="hq-nginx-") as name:
        folder = Path(name)
        certificate = make_certificate(folder / "tls")
        for old, new in {
            "127.0.0.1:8000": f"127.0.0.1:{web_port}",
            "listen 443": f"listen 127.0.0.1:{port}",
            "server_name helixq.example": "server_name localhost",
            "/etc/nginx/helixq.crt": f"{folder}/tls/{CERTIFICATE}",
            "/etc/nginx/helixq.key": f"{folder}/tls/{KEY}",
        }.items():
            assert old in site
            site = site.replace(old, new)
        (folder / "nginx.conf").write_text(CONFIGURATION.format(folder=folder, site=site))
        command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
        process = start(command, os.environ, **_ordinary_user(folder))
        try:
            process.wait_for("start worker process")  # It listens before.
            yield Nginx(port, certificate, process)
        finally:
            process.stop()


def _ordinary_user(folder: Path) -> dict[str, Any]:
    """Return options of a program that let somebody without privileges run it, who gets the folder."""
    if os.getuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    for path in (folder, *folder.rglob("*")):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
