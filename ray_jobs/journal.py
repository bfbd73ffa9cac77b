"""The journal of a search: every event of its trials, in its storage, which is what a search is resumed from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec

from ray_jobs.command import StorageUnavailable


class Journal:
    """Append-only events of a search, one JSON object a line, at a path or fsspec URL."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._local = "://" not in location
        self._lines = self._read()
        if self._local:
            Path(location).parent.mkdir(parents=True, exist_ok=True)
            if Path(location).exists():
                # What a killed driver was writing when it died must not become the start of the next line.
                os.truncate(location, sum(len(line.encode()) + 1 for line in self._lines))

    @property
    def location(self) -> str:
        """Its path or URL."""
        return self._location

    @property
    def events(self) -> list[dict[str, Any]]:
        """All events, oldest first."""
        return [json.loads(line) for line in self._lines]

    def append(self, event: Mapping[str, Any]) -> None:
        """Writes one event; it is on disk (or in the store) when this returns. Raises StorageUnavailable."""
        line = json.dumps(event)
        try:
            if self._local:
                self._append_line(line)
            else:
                # Object stores cannot append. A journal is small: a few hundred bytes per epoch of a trial.
                with fsspec.open(self._location, "w", encoding="utf-8") as file:
                    file.write("\n".join([*self._lines, line]) + "\n")
            self._lines.append(line)
        except Exception as error:  # every store has exceptions of its own
            raise StorageUnavailable(f"the search's journal {self._location} cannot be written: {error}") from error

    def _append_line(self, line: str) -> None:
        before = os.path.getsize(self._location) if os.path.exists(self._location) else 0
        try:
            with open(self._location, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError:
            if os.path.exists(self._location):
                os.truncate(self._location, before)  # a full disk takes part of a line
            raise

    def _read(self) -> list[str]:
        try:
            with fsspec.open(self._location, "r", encoding="utf-8") as file:
                lines = file.read().split("\n")
        except FileNotFoundError:
            return []
        # An event that was not written to its end has no newline yet.
        return lines[:-1]
