"""A document in parts that know nothing of a format, and the same document as Markdown.

Everything in it is plain text until it is written: labels, ids and reasons come from users, so nothing in them may
become markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Verbatim:
    """An identifier or a command inside a line."""

    text: str


Cell = str | Verbatim


@dataclass(frozen=True)
class Paragraph:
    """One paragraph."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """``rows`` have as many cells as ``head``; a head of empty texts is a table without one."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Code:
    """Lines of code in a language."""

    language: str
    text: str


Block = Paragraph | Items | Table | Code


@dataclass(frozen=True)
class Section:
    """A titled part of a document."""

    title: str
    blocks: Sequence[Block]


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The document as Markdown, with tables as GitHub and MLflow show them."""
    return "\n".join([f"# {escaped(title)}\n", *map(_section, sections)])


def shortened(title: str, sections: Sequence[Section], limit: int, rest: str) -> str:
    """The Markdown of as many sections as fit into ``limit`` characters, in their order; ``rest`` tells where the
    others are, and is there only if some are left out."""
    whole = markdown(title, sections)
    if len(whole) <= limit:
        return whole
    ending = f"\n{escaped(rest)}\n"
    kept: list[Section] = []
    for section in sections:
        if len(markdown(title, [*kept, section])) + len(ending) <= limit:
            kept.append(section)
    return markdown(title, kept) + ending


def escaped(text: str) -> str:
    """``text`` as Markdown that shows just that, on one line, in a table too."""
    line = re.sub(r"\s+", " ", text)
    line = re.sub(r"([\\`*_{}\[\]#|!~$])", r"\\\1", line)
    # Not every reader of Markdown knows a backslash before these, and a bare address would become a link.
    for sign, entity in _ENTITIES.items():
        line = line.replace(sign, entity)
    return line.replace("://", ":&#47;&#47;").replace("www.", "www&#46;")


_ENTITIES: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def _section(section: Section) -> str:
    return "\n".join([f"## {escaped(section.title)}\n", *map(_block, section.blocks)])


def _block(block: Block) -> str:
    match block:
        case Paragraph(text):
            return f"{escaped(text)}\n"
        case Items(items):
            return "".join(f"- {escaped(item)}\n" for item in items)
        case Table(head, rows):
            lines = [[escaped(name) for name in head], ["---"] * len(head), *(map(_cell, row) for row in rows)]
            return "".join(f"| {' | '.join(line)} |\n" for line in lines)
        case Code(language, text):
            fence = "`" * max(3, _longest_run(text) + 1)
            return f"{fence}{language}\n{text}\n{fence}\n"


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return escaped(cell)
    # A table ends a cell at "|" even inside code, and some readers show the backslash that would keep it.
    text = re.sub(r"\s+", " ", cell.text)
    if not text or "|" in text or text != text.strip():
        return escaped(text)
    fence = "`" * (_longest_run(text) + 1)
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
