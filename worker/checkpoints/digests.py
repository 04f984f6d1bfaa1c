"""Hash checkpoints on threads while the worker starts. Does not import torch."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import logging
import threading
import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Self
from uuid import uuid4

from jobs.settings import DATA_DIR_MODE, Settings

log = logging.getLogger(__name__)

#: A checkpoint's files. Other files are not downloaded from the hub.
ALLOW_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt")
#: Not of a checkpoint, though they look like its files: weights in Mistral's own format, which some repositories have
#: beside Hugging Face's, and what is in folders within, which nothing reads.
IGNORE_PATTERNS = ("consolidated*", "*/*")
#: Downloaded only if there are no safetensors, and read as plain tensors.
PICKLE_PATTERNS = ("*.bin",)
#: Bytes to read at a time. hashlib releases the GIL while it hashes them.
CHUNK_BYTES = 2**20
#: From this size, hashing is logged.
MIN_LOGGED_BYTES = 2**30


class Digests:
    """Computes digests of folders. Files whose digests are cached are not read again."""

    def __init__(self, cache: Path | None = None) -> None:
        """
        Args:
            cache: a file that keeps digests between runs.
        """
        self._cache_file = cache
        self._cached = _read(cache)
        self._by_folder: dict[Path, Digest] = {}
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(thread_name_prefix="hashing")

    @classmethod
    def of_settings(cls, settings: Settings) -> Self:
        """Return digests that are cached in a worker's data folder."""
        return cls(settings.data_dir / "digests.json")

    def begin(self, folder: Path) -> Digest:
        """Start to hash a folder, or return its digest if the folder has not changed since."""
        digest = self._by_folder.get(folder)
        if digest is None or digest.changed():
            digest = self._by_folder[folder] = Digest(self, folder)
        return digest

    def stop(self) -> None:
        """Cancel unfinished digests. Waiting for them raises `CancelledError`."""
        self._stopping.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def is_cached(self, key: str) -> bool:
        return key in self._cached

    def sha256(self, file: Path, key: str) -> Future[str]:
        """Return a future of a file's SHA-256.

        Args:
            file: the file.
            key: its key in the cache (`cache_keys`).
        """
        if key in self._cached:
            done: Future[str] = Future()
            done.set_result(self._cached[key])
            return done
        return self._pool.submit(self._sha256, file)

    def store(self, new: dict[str, str]) -> None:
        """Add digests to the cache, which other processes may also be writing."""
        self._cached |= new
        if self._cache_file is None or not new:
            return
        try:
            self._cache_file.parent.mkdir(mode=DATA_DIR_MODE, parents=True, exist_ok=True)
            # Replace the file atomically, since another worker may be reading it.
            part = self._cache_file.with_name(f"{self._cache_file.name}.{uuid4().hex}")
            try:
                part.write_text(json.dumps(_read(self._cache_file) | self._cached, indent=1))
                part.replace(self._cache_file)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the digests are not cached: %s", error)

    def _sha256(self, file: Path) -> str:
        sha256 = hashlib.sha256()
        buffer = bytearray(CHUNK_BYTES)
        view = memoryview(buffer)
        with file.open("rb", buffering=0) as stream:
            while size := stream.readinto(buffer):
                sha256.update(view[:size])
                if self._stopping.is_set():
                    raise CancelledError
        return sha256.hexdigest()


class Digest:
    """SHA-256 of the names and contents of a folder's files, which may still be being computed."""

    def __init__(self, digests: Digests, folder: Path) -> None:
        self._digests = digests
        self._folder = folder
        self._began = time.monotonic()
        self._keys = cache_keys(folder)
        self._hashes = {file: digests.sha256(file, key) for file, key in self._keys.items()}
        self._new = [file for file, key in self._keys.items() if not digests.is_cached(key)]
        self._size = sum(file.stat().st_size for file in self._new)
        self._ended = self._began
        for file in self._new:
            self._hashes[file].add_done_callback(self._set_end_time)
        self._result: str | None = None
        if self._size > MIN_LOGGED_BYTES:
            log.info("hashing %.1f GB in %s, once", self._size / 1e9, folder)

    def result(self) -> str:
        """Wait for the digest, in hexadecimal.

        Raises:
            OSError: a file cannot be read.
            CancelledError: hashing was cancelled.
        """
        if self._result is None:
            hashes = {file: future.result() for file, future in self._hashes.items()}
            if self._size > MIN_LOGGED_BYTES:
                log.info("hashed %s in %.1f s", self._folder, self._ended - self._began)
            # If a file has changed meanwhile, the hash is of no version of it.
            if self._new and not self.changed():
                self._digests.store({self._keys[file]: hashes[file] for file in self._new})
            listing = "".join(f"{sha256}  {file.name}\n" for file, sha256 in hashes.items())
            self._result = hashlib.sha256(listing.encode()).hexdigest()
        return self._result

    def _set_end_time(self, _: Future[str]) -> None:
        self._ended = time.monotonic()

    def changed(self) -> bool:
        """Return whether the folder's files have changed since hashing started."""
        try:
            return cache_keys(self._folder) != self._keys
        except OSError:
            return True


def begin(settings: Settings) -> Digests:
    """Start to hash the configured checkpoints that are folders; others start when they are found."""
    digests = Digests.of_settings(settings)
    for reference in (settings.base_model, *settings.adapters.values()):
        folder = Path(reference).expanduser()
        # `find_checkpoints` reports what is wrong.
        with suppress(OSError):
            if folder.is_dir():
                digests.begin(folder.absolute())
    return digests


def digest(folder: Path) -> str:
    """Hash a checkpoint's files.

    Args:
        folder: the checkpoint's folder.

    Returns:
        SHA-256 of names and contents, in hexadecimal.

    Raises:
        OSError: a file cannot be read.
    """
    with Digests() as digests:
        return digests.begin(folder).result()


def cache_keys(folder: Path) -> dict[Path, str]:
    """Return a checkpoint's files, sorted, and for each a key that changes when it is written to.

    Raises:
        OSError: a file no longer exists.
    """
    files = sorted(
        {
            file
            for pattern in (*ALLOW_PATTERNS, *PICKLE_PATTERNS)
            for file in folder.glob(pattern)
            if not is_ignored(file.name)
        }
    )
    stats = [(file, file.stat()) for file in files]
    return {file: f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}" for file, stat in stats}


def is_ignored(name: str) -> bool:
    """Return whether a file is none of a checkpoint's, by its path in the folder."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in IGNORE_PATTERNS)


def _read(cache: Path | None) -> dict[str, str]:
    """Read a cache file. A damaged one has no digests."""
    if cache is not None:
        with suppress(OSError, ValueError):
            content = json.loads(cache.read_text())
            if isinstance(content, dict):
                return {key: value for key, value in content.items() if _is_sha256(value)}
    return {}


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
