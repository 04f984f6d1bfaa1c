"""A fake of the model hub: it serves repositories from folders, to the real client."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.joining import shut_down


class Hub:
    """Serves each folder at ``root/team/name`` as the repository ``team/name``, until it is stopped."""

    def __init__(self, root: Path, commit: str) -> None:
        """
        Args:
            root: of the folders.
            commit: the hash of each repository's only commit, 40 hexadecimal digits.
        """
        #: The paths of the files that were downloaded, in their repositories.
        self.downloaded: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                if path.startswith("/api/models/"):
                    self._list(path.removeprefix("/api/models/"))
                else:
                    self._file(path)

            do_HEAD = do_GET  # noqa: N815 (the name that http.server calls)

            def _list(self, path: str) -> None:
                name, _, rest = path.partition("/tree/")
                if rest:
                    folder = root / name
                    files = [file for file in folder.rglob("*") if file.is_file()]
                    self._send(
                        [
                            {
                                "type": "file",
                                "path": file.relative_to(folder).as_posix(),
                                "size": file.stat().st_size,
                                "oid": _etag(file),
                            }
                            for file in files
                        ]
                    )
                else:
                    self._send({"id": path.partition("/revision/")[0], "sha": commit})

            def _file(self, path: str) -> None:
                name, _, file_path = path.removeprefix("/").partition(f"/resolve/{commit}/")
                file = root / name / file_path
                if self.command == "GET":
                    hub.downloaded.append(file_path)
                self._reply(
                    file.read_bytes(), {"X-Repo-Commit": commit, "ETag": f'"{_etag(file)}"'}
                )

            def _send(self, value: object) -> None:
                self._reply(json.dumps(value).encode(), {"Content-Type": "application/json"})

            def _reply(self, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(200)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        shut_down(self._server, self._thread)


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()
