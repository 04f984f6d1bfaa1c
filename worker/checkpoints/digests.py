"""Hashes checkpoints on threads, beside whatever else a start does. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from jobs.settings import Settings

log = logging.getLogger(__name__)

#: What a checkpoint is made of; a hub repository's other files are not fetched.
FILES = ("*.json", "*.safetensors", "*.model", "*.txt")
#: Fetched, and read as plain tensors, only where there are no safetensors.
PICKLES = ("*.bin",)
#: Bytes that are read at a time. hashlib lets other threads run while it hashes them.
CHUNK = 2**20
#: Bytes that are worth a line in the log.
WORTH_SAYING = 2**30


class Digests:
    """Digests of folders, each hashed once; contents that a file knows are not read again."""

    def __init__(self, cache: Path | None = None) -> None:
        """
        Args:
            cache: a file that keeps digests from one run to the next.
        """
        self._cache = cache
        self._known = _read(cache)
        self._found: dict[Path, Digest] = {}
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(thread_name_prefix="hashing")

    @classmethod
    def of_settings(cls, settings: Settings) -> Self:
        """Make those that a worker keeps in its data folder."""
        return cls(settings.data_dir / "digests.json")

    def begin(self, folder: Path) -> Digest:
        """Begin to hash a folder, or go on with it if it is as it was."""
        found = self._found.get(folder)
        if found is None or found.changed():
            found = self._found[folder] = Digest(self, folder)
        return found

    def stop(self) -> None:
        """Give up what is not done: who waits for it gets a `CancelledError`."""
        self._stopping.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def knows(self, key: str) -> bool:
        return key in self._known

    def hashed(self, file: Path, key: str) -> Future[str]:
        """Return what will be the SHA-256 of a file, by the key that `keys` gives it."""
        if key in self._known:
            done: Future[str] = Future()
            done.set_result(self._known[key])
            return done
        return self._pool.submit(self._sha256, file)

    def keep(self, new: dict[str, str]) -> None:
        """Note digests for the next run. Other programs may be doing so at the same moment."""
        self._known |= new
        if self._cache is None or not new:
            return
        try:
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            # In place whole: a worker that starts meanwhile reads the old file or the new one.
            draft = self._cache.with_name(f"{self._cache.name}.{uuid4().hex}")
            try:
                draft.write_text(json.dumps(_read(self._cache) | self._known, indent=1))
                draft.replace(self._cache)
            finally:
                draft.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the digests are not cached: %s", error)

    def _sha256(self, file: Path) -> str:
        found = hashlib.sha256()
        buffer = bytearray(CHUNK)
        view = memoryview(buffer)
        with file.open("rb", buffering=0) as stream:
            while size := stream.readinto(buffer):
                found.update(view[:size])
                if self._stopping.is_set():
                    raise CancelledError
        return found.hexdigest()


class Digest:
    """SHA-256 over names and contents of a folder's files, perhaps still being computed."""

    def __init__(self, digests: Digests, folder: Path) -> None:
        self._digests = digests
        self._folder = folder
        self._began = time.monotonic()
        self._keys = keys(folder)
        self._hashes = {file: digests.hashed(file, key) for file, key in self._keys.items()}
        self._new = [file for file, key in self._keys.items() if not digests.knows(key)]
        self._size = sum(file.stat().st_size for file in self._new)
        self._ended = self._began
        for file in self._new:
            self._hashes[file].add_done_callback(self._note)
        self._result: str | None = None
        if self._size > WORTH_SAYING:
            log.info("hashing %.1f GB in %s, once", self._size / 1e9, folder)

    def result(self) -> str:
        """Wait for the digest, in hexadecimal.

        Raises:
            OSError: a file cannot be read.
            CancelledError: it was given up.
        """
        if self._result is None:
            known = {file: future.result() for file, future in self._hashes.items()}
            if self._size > WORTH_SAYING:
                log.info("hashed %s in %.1f s", self._folder, self._ended - self._began)
            # Contents that changed under way have no digest: what was hashed is in no file.
            if self._new and not self.changed():
                self._digests.keep({self._keys[file]: known[file] for file in self._new})
            listing = "".join(f"{hashed}  {file.name}\n" for file, hashed in known.items())
            self._result = hashlib.sha256(listing.encode()).hexdigest()
        return self._result

    def _note(self, _: Future[str]) -> None:
        self._ended = time.monotonic()

    def changed(self) -> bool:
        """Whether the folder's files are others than when the hashing began."""
        try:
            return keys(self._folder) != self._keys
        except OSError:
            return True


def begin(settings: Settings) -> Digests:
    """Begin to hash what a worker will load and is here already; the rest waits until it is found."""
    digests = Digests.of_settings(settings)
    for reference in (settings.base_model, *settings.adapters.values()):
        folder = Path(reference).expanduser()
        # Whatever is wrong is said where the checkpoints are looked for.
        with suppress(OSError):
            if folder.is_dir():
                digests.begin(folder.absolute())
    return digests


def digest(folder: Path) -> str:
    """Hash a checkpoint's files.

    Args:
        folder: the checkpoint's.

    Returns:
        SHA-256 over names and contents, in hexadecimal.

    Raises:
        OSError: a file cannot be read.
    """
    with Digests() as digests:
        return digests.begin(folder).result()


def keys(folder: Path) -> dict[Path, str]:
    """Return a checkpoint's files, sorted, and for each what is another once it was written to.

    Raises:
        OSError: a file is not there any more.
    """
    files = sorted({file for pattern in (*FILES, *PICKLES) for file in folder.glob(pattern)})
    stats = [(file, file.stat()) for file in files]
    return {file: f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}" for file, stat in stats}


def _read(cache: Path | None) -> dict[str, str]:
    """Read a file of digests; one that is damaged knows none."""
    if cache is not None:
        with suppress(OSError, ValueError):
            found = json.loads(cache.read_text())
            if isinstance(found, dict):
                return {key: value for key, value in found.items() if _is_sha256(value)}
    return {}


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
