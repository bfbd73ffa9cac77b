"""The parts of a test split that are looked at on their own: a model can win on the whole and lose on one of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

_NEGATION = re.compile(
    r"\b(?:not?|never|neither|nor|none|nothing|nobody|nowhere|without|hardly|barely|cannot)\b|n['’]t\b", re.IGNORECASE
)


def slices_of(texts: Sequence[str], columns: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Name of each slice to its members, bool [texts]: quarters by length, with and without negation (of English), and
    one for each value of each of the data's ``columns``. A slice that holds no text, or all, is left out.
    """
    found = {**_by_length(texts), **_by_negation(texts)}
    for column, values in columns.items():
        given = np.asarray(values, dtype=object)
        found |= {f"{column}: {value}": given == value for value in sorted(set(values))}
    return {name: members for name, members in found.items() if 0 < members.sum() < len(texts)}


def averaged_in_slice(averaged: Sequence[int], there: np.ndarray) -> list[int]:
    """The classes whose F1s are averaged in a slice whose texts are of the classes ``there``, int [classes].

    Of those that are ``averaged`` over all texts the ones that the slice has; if it has none of them, all that it has.
    A class without a text has F1 0 whatever a model does, which would hide how good it is on the others.
    """
    return [each for each in averaged if each in there] or there.tolist()


def _by_length(texts: Sequence[str]) -> dict[str, np.ndarray]:
    words = np.asarray([len(text.split()) for text in texts])
    ends = np.unique(np.percentile(words, [25, 50, 75, 100], method="lower").astype(np.int64))
    found, above = {}, int(words.min()) - 1
    for end in ends.tolist():
        found[f"length: {above + 1} to {end} words"] = (words > above) & (words <= end)
        above = end
    return found


def _by_negation(texts: Sequence[str]) -> dict[str, np.ndarray]:
    negated = np.asarray([_NEGATION.search(text) is not None for text in texts])
    return {"negation: with": negated, "negation: without": ~negated}
