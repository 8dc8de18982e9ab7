"""Where what was measured is kept: a SQLite file of JSON texts by digest, whatever they mean."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tritonc.schemas.errors import SetupError

_TIMEOUT_S = 10.0
_TABLE = """
CREATE TABLE IF NOT EXISTS records (
    content TEXT NOT NULL,
    candidate TEXT NOT NULL,
    kind TEXT NOT NULL,
    which TEXT NOT NULL,
    knobs TEXT NOT NULL,
    entry TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    PRIMARY KEY (content, candidate, kind, which)
) WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True, order=True)
class Row:
    """One entry.

    Attributes:
        candidate: digest of what was served; empty for what is no candidate's own.
        kind: of the entry.
        which: tells it from others of its kind.
        knobs: of the candidate, as JSON.
        entry: JSON; None where the row is not the one that was written.
    """

    candidate: str
    kind: str
    which: str
    knobs: str
    entry: str | None

    @property
    def sha256(self) -> str:
        """Of all of it: SQLite does not know when a page of its file is damaged."""
        text = "\0".join([self.candidate, self.kind, self.which, self.knobs, self.entry or ""])
        return hashlib.sha256(text.encode()).hexdigest()


class RecordStore:
    """Entries in a SQLite file, made by the first one that is written.

    Each method is one transaction on a connection of its own: what was written outlives this process, however
    it ends. Every method raises SetupError where the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, content: str, candidate: str | None = None) -> tuple[Row, ...]:
        """The entries of a candidate, or of all; none where there is no file."""
        if not self._path.exists():
            return ()
        query = "SELECT sha256, candidate, kind, which, knobs, entry FROM records WHERE content = ?"
        with self._connected() as database:
            if candidate is None:
                found = database.execute(query, (content,))
            else:
                found = database.execute(f"{query} AND candidate = ?", (content, candidate))
            rows = sorted((Row(*map(str, row)), str(sha256)) for sha256, *row in found)
        return tuple(row if row.sha256 == sha256 else replace(row, entry=None) for row, sha256 in rows)

    def write(self, content: str, rows: Iterable[Row]) -> None:
        """Writes entries, all or none, each in the place of an earlier one."""
        values = [
            (content, row.candidate, row.kind, row.which, row.knobs, row.entry, row.sha256) for row in rows
        ]
        with self._connected() as database:
            database.executemany("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?)", values)

    def forget(self, content: str, candidate: str | None = None) -> None:
        """Deletes the entries of a candidate, or all of this content."""
        if not self._path.exists():
            return
        with self._connected() as database:
            if candidate is None:
                database.execute("DELETE FROM records WHERE content = ?", (content,))
            else:
                database.execute(
                    "DELETE FROM records WHERE content = ? AND candidate = ?", (content, candidate)
                )

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A transaction, written ahead to a log as that of the studies is (`optuna_storage`)."""
        try:
            with closing(sqlite3.connect(self._path, timeout=_TIMEOUT_S)) as database, database:
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = NORMAL")
                database.execute(_TABLE)
                yield database
        except sqlite3.Error as err:
            raise SetupError(
                f"the measurements in {self._path} cannot be read or written: {err}",
                remedy(str(err), "move it away: the trials are elsewhere"),
            ) from err


def remedy(said: str, last: str) -> str:
    """What to do about what SQLite said of a file, and `last` where nothing else helps."""
    if "readonly" in said or "unable to open" in said:
        return "make it and its folder writable"
    return f"free some space, let no other program use it, or {last}"
