"""The journal of a search: every event of its trials, in its storage, which is what a search is resumed from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec

from ray_jobs.command import StorageUnavailable

_PART_BYTES = 256 * 1024


def read_lines(location: str) -> list[str]:
    """All whole lines of the journal at a path or URL, oldest first. Raises FileNotFoundError."""
    return [line for part in _parts(location) for line in part]


class Journal:
    """Append-only events of a search, one JSON object a line, at a path or fsspec URL.

    Object stores cannot append, so there the end of the journal is written anew with every event. It continues in a
    further object (``journal.jsonl.1`` and so on) whenever one has 256 kB: with 1,000 trials a journal has 9 MB.
    """

    def __init__(self, location: str) -> None:
        self._location = location
        self._local = "://" not in location
        try:
            self._parts = _parts(location)
        except FileNotFoundError:
            self._parts = [[]]
        if self._local:
            Path(location).parent.mkdir(parents=True, exist_ok=True)
            if Path(self._end).exists():
                # What a killed driver was writing when it died must not become the start of the next line.
                os.truncate(self._end, self._end_bytes)

    @property
    def location(self) -> str:
        """Its path or URL."""
        return self._location

    @property
    def events(self) -> list[dict[str, Any]]:
        """All events, oldest first."""
        return [json.loads(line) for part in self._parts for line in part]

    def append(self, event: Mapping[str, Any]) -> None:
        """Writes one event; it is on disk (or in the store) when this returns. Raises StorageUnavailable."""
        line = json.dumps(event)
        try:
            if self._local:
                self._append_line(line)
            else:
                if self._end_bytes > _PART_BYTES:
                    self._parts.append([])
                with fsspec.open(self._end, "w", encoding="utf-8") as file:
                    file.write("\n".join([*self._parts[-1], line]) + "\n")
            self._parts[-1].append(line)
        except Exception as error:  # every store has exceptions of its own
            raise StorageUnavailable(f"the search's journal {self._location} cannot be written: {error}") from error

    @property
    def _end(self) -> str:
        return _part(self._location, len(self._parts) - 1)

    @property
    def _end_bytes(self) -> int:
        return sum(len(line.encode()) + 1 for line in self._parts[-1])

    def _append_line(self, line: str) -> None:
        before = os.path.getsize(self._end) if os.path.exists(self._end) else 0
        try:
            with open(self._end, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError:
            if os.path.exists(self._end):
                os.truncate(self._end, before)  # a full disk takes part of a line
            raise


def _part(location: str, number: int) -> str:
    return f"{location}.{number}" if number else location


def _parts(location: str) -> list[list[str]]:
    parts: list[list[str]] = []
    while True:
        try:
            with fsspec.open(_part(location, len(parts)), "r", encoding="utf-8") as file:
                # An event that was not written to its end has no newline yet.
                parts.append(file.read().split("\n")[:-1])
        except FileNotFoundError:
            if not parts:
                raise
            return parts
