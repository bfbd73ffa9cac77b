"""Cleaning that keeps the meaning: markup of line breaks, control characters, white space, Unicode form.

Case, punctuation, emoji, HTML entities and stop words stay: a model reads them.
"""

from __future__ import annotations

import re
import unicodedata

_BREAK = re.compile(r"<\s*/?\s*(?:br|p)\s*/?\s*>", re.IGNORECASE)
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u200b\ufeff]")
_HORIZONTAL_SPACE = re.compile(r"[^\S\n]+")
_NEWLINES = re.compile(r" ?(?:\n ?)+")
# Printable ASCII only, like most sentences: nothing but breaks and double spaces to clean.
_PLAIN = re.compile(r"[ -~]+")


def _control_table() -> dict[int, str]:
    table = dict.fromkeys([*range(0x09), *range(0x0E, 0x20), 0x7F, *range(0x80, 0xA0)], " ")
    for code in range(0x80, 0xA0):
        # A C1 control in a text is a Windows-1252 quote or dash that was decoded as Latin-1 ("don\x92t"); the WHATWG
        # encoding standard reads it the same way.
        try:
            table[code] = bytes([code]).decode("cp1252")
        except UnicodeDecodeError:
            continue
    # Zero-width space and byte order mark stand for nothing; the joiners of emoji and Persian are left alone.
    return table | {0x200B: "", 0xFEFF: ""}


_CONTROLS = _control_table()


def clean_text(text: str) -> str:
    """``text`` with HTML breaks as newlines, no control characters, single spaces, Unicode NFC, no space around."""
    if "<" in text:
        text = _BREAK.sub("\n", text)
    if not _PLAIN.fullmatch(text):
        if _CONTROL.search(text):
            text = text.translate(_CONTROLS)
        if not text.isascii():
            text = unicodedata.normalize("NFC", text)
        text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n")
        text = _HORIZONTAL_SPACE.sub(" ", text)
        text = _NEWLINES.sub("\n", text)
    elif "  " in text:
        text = _HORIZONTAL_SPACE.sub(" ", text)
    return text.strip()
