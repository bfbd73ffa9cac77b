"""Content digests: what makes two texts, two splits or two model folders the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

# Before the name of a slice column in the file of a frozen split.
SLICE_PREFIX = "slice:"
_DIGEST_VERSION = b"trialgate-split-1"


def content_id(text: str) -> str:
    """The id of a text that has none: 32 hex characters of the SHA-256 of its UTF-8 bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def split_digest(
    ids: Sequence[str],
    texts: Sequence[str],
    labels: Iterable[int],
    label_names: Sequence[str],
    slices: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """SHA-256 (64 hex characters) of a split's content, the same for every order of its rows.

    Changes exactly when a row's id, text, label name or value of a slice column changes, or the set of classes or
    their order does. ``slices``: name of a column to its value for each row; their order does not matter.
    """
    columns = sorted(slices or {})
    values = zip(*((slices or {})[column] for column in columns), strict=True) if columns else [()] * len(ids)
    rows = sorted(
        hashlib.sha256(_framed(row_id, text, label_names[label], *of_row)).digest()
        for row_id, text, label, of_row in zip(ids, texts, (int(label) for label in labels), values, strict=True)
    )
    whole = hashlib.sha256(_DIGEST_VERSION)
    whole.update(_framed(*label_names))
    if columns:  # a split without any keeps the digest that it had before there were slices
        whole.update(hashlib.sha256(_framed(*columns)).digest())
    for row in rows:
        whole.update(row)
    return whole.hexdigest()


def files_digest(folder: Path, names: Iterable[str]) -> str:
    """SHA-256 over the names and bytes of the given files of a folder, in sorted order of their names."""
    whole = hashlib.sha256()
    for name in sorted(names):
        with (folder / name).open("rb") as file:
            whole.update(_framed(name, hashlib.file_digest(file, "sha256").hexdigest()))
    return whole.hexdigest()


def _framed(*parts: str) -> bytes:
    """The parts, each behind its length in bytes, so that no two lists of parts run together."""
    encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
    return b"".join(len(part).to_bytes(8, "little") + part for part in encoded)
