"""Mechanical changes of a text that leave its meaning as it is. A suite refers to them by name (``perturb: typo``).

The same text always gives the same change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from random import Random

# Says nothing about quality, and fits a review of a film, of a restaurant and of a product.
_FILLER = (
    "I am writing this on a Tuesday.",
    "My neighbour asked me about it.",
    "There is another one in the next town.",
    "We talked about it on the bus home.",
    "It had rained in the morning.",
    "A friend of mine lives around the corner.",
    "I read about it in the newspaper.",
    "There were four of us that day.",
    "My cousin took some pictures.",
    "It was about six in the evening.",
    "This is the second one that I have written about.",
    "You can find it on the map.",
    "I had the day off.",
    "We came by train.",
    "My sister lives in the same street.",
    "It was the week after Easter.",
)
_WORDS_AFTER, _WORDS_BEFORE = 100, 40


def upper_case(text: str) -> str:
    """Capital letters throughout."""
    return text.upper()


def lower_case(text: str) -> str:
    """Small letters throughout."""
    return text.lower()


def typo(text: str) -> str:
    """One typo: two neighbouring letters swapped inside a word of at least four, never its first letter.

    Which ones is drawn by the text itself. A text without such a word stays as it is.
    """
    places = [
        place
        for word in re.finditer(r"[^\W\d_]{4,}", text)
        for place in range(word.start() + 1, word.end() - 1)
        if text[place] != text[place + 1]
    ]
    if not places:
        return text
    place = places[int(Random(text).random() * len(places))]
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]


def no_end_mark(text: str) -> str:
    """Without the punctuation at the end."""
    return text.rstrip(".!?… ")


def exclamation_marks(text: str) -> str:
    """Three exclamation marks at the end."""
    return f"{no_end_mark(text)}!!!"


def ellipsis(text: str) -> str:
    """Three dots at the end."""
    return f"{no_end_mark(text)}..."


def double_spaces(text: str) -> str:
    """Two spaces between words."""
    return text.replace(" ", "  ")


def url(text: str) -> str:
    """An address at the end."""
    return f"{text} https://www.example.com/reviews/48213"


def filler_after(text: str) -> str:
    """Neutral sentences at the end, until the text has at least 100 words."""
    return f"{text} {_filler(_WORDS_AFTER - len(text.split()))}".rstrip()


def filler_before(text: str) -> str:
    """Neutral sentences at the beginning, at least 40 words of them."""
    return f"{_filler(_WORDS_BEFORE)} {text}"


def _filler(words: int) -> str:
    return " ".join(_sentences(words))


def _sentences(words: int) -> Iterator[str]:
    place = 0
    while words > 0:
        sentence = _FILLER[place % len(_FILLER)]
        yield sentence
        words -= len(sentence.split())
        place += 1


PERTURBATIONS: dict[str, Callable[[str], str]] = {
    change.__name__: change
    for change in (
        upper_case,
        lower_case,
        typo,
        no_end_mark,
        exclamation_marks,
        ellipsis,
        double_spaces,
        url,
        filler_after,
        filler_before,
    )
}
