"""The folder of a batch job's output, which is also all that the job remembers.

    _job.json       what the job is, with the model version that it began with; written first
    _precision      in which precision its workers compute; written by the first
    part-*          predictions; the existence of a part's file says that the part is finished
    _rejected/      the rows without prediction, JSON Lines; a part's file is here before its predictions are
    _SUCCESS        the job's result; written last

A name that begins with an underscore is passed over by what reads folders of Parquet, CSV or JSON files. A part's name
follows from its rows, and its content from them and the version: written twice, by a worker that was thought lost, it
is the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from configs.exit_codes import UsageError
from ray_jobs.command import StorageUnavailable
from ray_jobs.data.files import redacted
from ray_jobs.disk import make_folder
from serve_app.refusals import storage_problem

JOB_FILE = "_job.json"
PRECISION_FILE = "_precision"
RESULT_FILE = "_SUCCESS"
REJECTED_FOLDER = "_rejected"
_PART = re.compile(r"part-(\d+)-(\d+)-(\d+)\.")  # file, first row, rows
_JOB_KEYS = frozenset({"model", "version", "settings", "files"})
_UNFINISHED = ".tmp-"


def part_name(file: int, first_row: int, rows: int) -> str:
    """The name, without ending, of the part of the ``file`` (its place in the job's list) that begins at that row."""
    return f"part-{file:05d}-{first_row:010d}-{rows}"


class Output:
    """The folder at a path or URL. Everything raises StorageUnavailable where it cannot be read or written."""

    def __init__(self, url: str, file_format: str) -> None:
        self._suffix = f".{file_format}"
        self.name = redacted(url)  # without user and password
        try:
            self._filesystem, self._path = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UsageError(f"batch_score.output {redacted(url)}: {error}") from error

    def job(self) -> dict[str, Any] | None:
        """What the job in this folder is; None when there is none. Raises UsageError for a folder with other things."""
        with self._in_use():
            self._filesystem.invalidate_cache()
            if self._filesystem.isfile(self._path):
                raise UsageError(f"batch_score.output {self.name} is a file: name a folder (--output)")
            content = self._read(JOB_FILE)
            if content is None and self._filesystem.exists(self._path) and self._has_other_things():
                raise UsageError(f"batch_score.output {self.name} exists and is not the output of a batch job: name a "
                                 "new or empty folder (--output)")  # fmt: skip
        return None if content is None else self._parsed(content, JOB_FILE, _JOB_KEYS)

    def begin(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Writes ``job``, unless another start of it was faster, and returns what stands there."""
        content = json.dumps(job, indent=1).encode()
        with self._in_use():
            make_folder(self._filesystem, self._path)
            began = self._first(JOB_FILE, content)
            make_folder(self._filesystem, f"{self._path}/{REJECTED_FOLDER}")
            return self._parsed(began, JOB_FILE, _JOB_KEYS)

    def agree_on_precision(self, precision: str) -> str:
        """The precision in which the first worker of the job computed: ``precision``, if this one is it."""
        with self._in_use():
            return self._first(PRECISION_FILE, precision.encode()).decode()

    def finished(self) -> dict[int, dict[int, int]]:
        """The finished parts: file -> first row -> rows."""
        parts: dict[int, dict[int, int]] = {}
        with self._in_use():
            self._filesystem.invalidate_cache()
            for name in self._names(""):
                if found := _PART.match(name):
                    file, first_row, rows = map(int, found.groups())
                    parts.setdefault(file, {})[first_row] = rows
        return parts

    def write_part(self, name: str, predictions: bytes, rejected: bytes) -> None:
        """Writes a part whole; ``rejected`` may be empty."""
        with self._in_use():
            if rejected:
                self._write(f"{REJECTED_FOLDER}/{name}.jsonl", rejected)
            self._write(f"{name}{self._suffix}", predictions)

    def rejected(self) -> Counter[str]:
        """Rows without prediction, by reason."""
        reasons: Counter[str] = Counter()
        with self._in_use():
            self._filesystem.invalidate_cache()
            for name in self._names(REJECTED_FOLDER):
                if name.startswith(_UNFINISHED):
                    continue
                with self._filesystem.open(f"{self._path}/{REJECTED_FOLDER}/{name}", "rb") as file:
                    reasons.update(json.loads(line)["reason"] for line in file)
        return reasons

    def result(self) -> dict[str, Any] | None:
        """The result of a job that is done."""
        with self._in_use():
            content = self._read(RESULT_FILE)
        return None if content is None else self._parsed(content, RESULT_FILE)

    def complete(self, result: Mapping[str, Any]) -> None:
        """Marks the job as done, and removes what killed workers were writing."""
        with self._in_use():
            for folder in ("", REJECTED_FOLDER):
                for name in self._names(folder):
                    if name.startswith(_UNFINISHED):
                        self._filesystem.rm_file(f"{self._path}/{folder}/{name}")
            self._write(RESULT_FILE, json.dumps(result, indent=1).encode())

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        try:
            yield
        except (UsageError, StorageUnavailable):
            raise
        except Exception as error:  # every store has exceptions of its own
            problem = storage_problem(self.name, error)
            raise StorageUnavailable(f"batch_score.output {self.name} cannot be used: {problem}") from error

    def _has_other_things(self) -> bool:
        """Whether there is more than what a start leaves that was killed before it had written what the job is."""
        return any(not name.startswith(_UNFINISHED) for name in self._names(""))

    def _names(self, folder: str) -> list[str]:
        path = f"{self._path}/{folder}".rstrip("/")
        if not self._filesystem.exists(path):
            return []
        return [entry.rstrip("/").rpartition("/")[2] for entry in self._filesystem.ls(path, detail=False)
                if entry.rstrip("/") != path]  # fmt: skip

    def _read(self, name: str) -> bytes | None:
        try:
            return bytes(self._filesystem.cat_file(f"{self._path}/{name}"))
        except FileNotFoundError:
            return None

    def _parsed(self, content: bytes, name: str, keys: frozenset[str] = frozenset()) -> dict[str, Any]:
        try:
            found = dict(json.loads(content))
            if not keys <= found.keys():
                raise ValueError(f"no {', '.join(sorted(keys - found.keys()))}")
            return found
        except (ValueError, TypeError):
            raise UsageError(f"{self.name}/{name} is damaged: name another --output") from None

    def _write(self, name: str, content: bytes) -> None:
        path = f"{self._path}/{name}"
        if not isinstance(self._filesystem, LocalFileSystem):
            self._filesystem.pipe_file(path, content)  # object stores show a file whole or not at all
            return
        folder, _, last = path.rpartition("/")
        part = _written(Path(f"{folder}/{_UNFINISHED}{uuid.uuid4().hex}-{last}"), content)
        part.replace(path)

    def _first(self, name: str, content: bytes) -> bytes:
        """Writes the file, unless another process was faster, and returns what stands there."""
        with contextlib.suppress(FileExistsError):
            self._create(name, content)
        return self._read(name) or b""

    def _create(self, name: str, content: bytes) -> None:
        path = f"{self._path}/{name}"
        if not isinstance(self._filesystem, LocalFileSystem):
            self._filesystem.pipe_file(path, content, mode="create")
            return
        part = _written(Path(f"{self._path}/{_UNFINISHED}{uuid.uuid4().hex}-{name}"), content)
        try:
            os.link(part, path)  # whole, and only where nothing is
        finally:
            part.unlink()


def _written(path: Path, content: bytes) -> Path:
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # what is renamed must be whole after a power cut too
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return path
