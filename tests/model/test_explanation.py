"""Explanations tell the truth about the model: what they name is what its answers hang on."""

from __future__ import annotations

import numpy as np
import pytest

from serve_app.inference.engine import Engine
from serve_app.inference.explanation import WordAttribution

TEXTS = (
    "The plot was dull and the acting was terrible, but the music was fine.",
    "I loved every minute of this wonderful film, even the slow beginning.",
    "A boring story with a weak cast; we left long before the end of it.",
    "The director made a great film out of a small book that nobody had read.",
    "It was not good at all, and the ending was the worst part of the evening.",
    "What a beautiful, moving picture about two brothers and their old house.",
    "The camera is shaky, the jokes are awful and my friends hated it too.",
    "An excellent cast and a brilliant script make this one a pleasure to watch.",
)


def without(text: str, words: list[WordAttribution]) -> str:
    for word in sorted(words, key=lambda word: word.start, reverse=True):
        text = text[: word.start] + text[word.end :]
    return text


@pytest.mark.parametrize("deleted", [1, 2, 3])
def test_deleting_the_words_that_count_moves_the_answer_more_than_deleting_others(model: Engine, deleted: int) -> None:
    draws = np.random.default_rng(0)
    by_explanation, by_chance = [], []
    for text in TEXTS:
        before = model.predict([text])[0]
        label = int(before.argmax())
        words = model.explainer().explain(model.locate(text), label, 32).words
        ranked = sorted(words, key=lambda word: word.attribution, reverse=True)
        random = [draws.choice(len(words), deleted, replace=False) for _ in range(20)]
        changed = [without(text, ranked[:deleted]), *(without(text, [words[place] for place in r]) for r in random)]
        fall = before[label] - model.predict(changed)[:, label]
        by_explanation.append(fall[0])
        by_chance.append(fall[1:].mean())
    assert np.mean(by_explanation) > 2 * np.mean(by_chance) + 0.05
    assert np.mean(np.asarray(by_explanation) > np.asarray(by_chance)) >= 0.75
