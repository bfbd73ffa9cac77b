"""Code in a saved-model folder: whatever runs when somebody opens it. Nothing like it gets into the registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

_FORMATS: Final = {
    ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".msgpack", ".py", ".pyc",
    ".so",
}  # fmt: skip
_PICKLE, _ARCHIVE = b"\x80", b"PK\x03\x04"  # first bytes; torch.save writes an archive with a pickle in it
_REMOTE_CODE: Final = "auto_map"  # transformers imports the module that it names, with trust_remote_code


def code_in(folder: Path) -> list[str]:
    """What runs code when the folder is opened by somebody: each file with the reason, in words."""
    return [f"{path.relative_to(folder)} {reason}" for path in sorted(folder.rglob("*")) if (reason := _reason(path))]


def _reason(path: Path) -> str | None:
    suffix = path.suffix.lower()
    if not path.is_file() or suffix == ".safetensors":  # its loader takes nothing else; its first bytes are a length
        return None
    if suffix in _FORMATS:
        return "may run code when opened"
    content = path.read_bytes()
    if content.startswith((_PICKLE, _ARCHIVE)):
        return "is a pickle or an archive, whatever its name"
    if suffix == ".json" and _names_remote_code(content):
        return f"names remote code ({_REMOTE_CODE})"
    return None


def _names_remote_code(content: bytes) -> bool:
    try:
        values = json.loads(content)
    except ValueError:  # for the loader to refuse
        return False
    # A vocabulary may have the word as a token, with a number.
    return isinstance(values, dict) and not isinstance(values.get(_REMOTE_CODE), int | None)
