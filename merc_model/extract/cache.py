"""Features that were computed already, by what they were computed from; survives a kill at any moment."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from merc_model.errors import UserError


class Cache:
    """A file of rows of features, each under a key; what ``put`` returned from stays.

    Args:
        path: an SQLite file, made where it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._rows = sqlite3.connect(path, timeout=60)
            self._rows.execute("CREATE TABLE IF NOT EXISTS features (key TEXT PRIMARY KEY, row BLOB)")
        except sqlite3.Error as error:
            raise UserError(f"{path}: not a cache of features: {error}; delete it, or name another") from None

    def get(self, keys: Iterable[str]) -> dict[str, NDArray[np.float32]]:
        """The rows that are there, by key."""
        return {key: np.frombuffer(data, np.float32) for key, data in self._get(keys)}

    def put(self, rows: Mapping[str, NDArray[np.float32]]) -> None:
        """Keep some rows, in one transaction."""
        self._put({key: np.ascontiguousarray(row, np.float32).tobytes() for key, row in rows.items()})

    def texts(self, keys: Iterable[str]) -> dict[str, str]:
        """The texts that are there, by key."""
        return {key: data.decode() for key, data in self._get(keys)}

    def put_text(self, key: str, text: str) -> None:
        """Keep a text."""
        self._put({key: text.encode()})

    def _get(self, keys: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        for key in keys:
            found = self._rows.execute("SELECT row FROM features WHERE key = ?", (key,)).fetchone()
            if found is not None:
                yield key, found[0]

    def _put(self, rows: Mapping[str, bytes]) -> None:
        try:
            with self._rows:
                self._rows.executemany("INSERT OR REPLACE INTO features VALUES (?, ?)", rows.items())
        except sqlite3.Error as error:  # a full disk, a folder that may not be written
            raise UserError(f"{self._path}: features cannot be kept: {error}") from None

    def close(self) -> None:
        """Let the file go."""
        self._rows.close()


def key(*parts: str) -> str:
    """A key of what features depend on."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def content(path: Path) -> str:
    """SHA-256 of a file, read again only when it changed."""
    state = path.stat()
    return _content(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4096)
def _content(path: Path, changed: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(name: str) -> str:
    """What tells an encoder from others: its name, and for a folder the contents of its files."""
    folder = Path(name)
    if not folder.is_dir():
        return name
    return key(*(f"{file.name} {content(file)}" for file in sorted(folder.iterdir()) if file.is_file()))
