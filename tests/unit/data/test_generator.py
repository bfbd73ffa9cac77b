from __future__ import annotations

import re

import numpy as np
import pytest

from ray_jobs.data.generator import LABEL_NAMES, TEST_START, class_names, generate


def test_same_seed_same_texts_and_a_smaller_set_is_a_prefix() -> None:
    texts, labels = generate(300, seed=7)
    assert generate(300, seed=7) == (texts, labels)
    assert generate(40, seed=7) == (texts[:40], labels[:40])
    assert generate(10, seed=7, start=30) == (texts[30:40], labels[30:40])
    assert generate(300, seed=8)[0] != texts


def test_the_texts_of_this_version() -> None:
    """Pins the content: raise generator.VERSION when this changes."""
    texts, labels = generate(2, seed=7, label_noise=0.0)
    assert labels == [1, 1]
    assert texts == [
        "This sequel is anything but weak. This documentary was truly mediocre, but overall I can recommend this "
        "documentary.",
        "the battery was fantastic. this phone was never bad. this backpack was absolutely brilliant.",
    ]


def test_noise_flips_its_share_of_labels_and_no_text() -> None:
    texts, clean = generate(8000, seed=3, label_noise=0.0)
    noisy_texts, noisy = generate(8000, seed=3, label_noise=0.1)
    assert noisy_texts == texts
    share = np.mean(np.asarray(clean) != np.asarray(noisy))
    assert share == pytest.approx(0.1, abs=0.015)  # 4 standard deviations


def test_balanced_and_of_varying_length() -> None:
    texts, labels = generate(8000, seed=7)
    words = [len(text.split()) for text in texts]
    assert np.mean(labels) == pytest.approx(0.5, abs=0.025)
    assert min(words) == 4
    assert 150 < max(words) <= 210
    assert np.quantile(words, 0.25) < 15 < 35 < np.quantile(words, 0.85)


def test_few_duplicates_within_and_across_splits() -> None:
    train, _ = generate(4000, seed=7)
    test, _ = generate(1000, seed=7, start=TEST_START)
    assert len(set(train)) > 0.995 * len(train)
    assert len(set(test) - set(train)) > 0.99 * len(test)


def test_sentences_are_whole() -> None:
    for text in generate(2000, seed=1)[0]:
        assert "%s" not in text
        assert not re.search(r"[{}]|  ", text)
        assert not re.search(r"\b(a [aeiou]|an [^aeiou])", text, re.IGNORECASE), text
        assert text[-1] in ".!"
        assert text.isascii()


def test_has_negation_contrast_and_hedging_on_both_sides() -> None:
    texts, labels = generate(4000, seed=7, label_noise=0.0)
    for pattern in (r"\b(was|is) not ", r"\bdid not ", r"\bnever ", r", but ", r"\balthough ", r" (somewhat|fairly) "):
        counts = [
            sum(
                bool(re.search(pattern, text, re.IGNORECASE))
                for text, label in zip(texts, labels, strict=True)
                if label == polarity
            )
            for polarity in range(len(LABEL_NAMES))
        ]
        assert min(counts) >= 20, (pattern, counts)


def test_the_verdict_comes_after_but() -> None:
    texts, labels = generate(4000, seed=7, label_noise=0.0)
    verdicts = {"it let me down": 0, "it was not worth the money": 0, "it was worth the money": 1, "it won me over": 1}
    seen = 0
    for text, label in zip(texts, labels, strict=True):
        for verdict, polarity in verdicts.items():
            if re.search(rf", (but|yet) (in the end |overall )?{verdict}", text, re.IGNORECASE):
                seen += 1
                assert label == polarity, text
    assert seen > 50


def test_classes_of_topic_and_sentiment_in_equal_ratios() -> None:
    texts, labels = generate(20_000, seed=7, task="topic_sentiment", imbalance=100.0, label_noise=0.0)
    names = class_names("topic_sentiment")
    assert names[0] == "film-negative"
    assert names[-1] == "product-positive"
    counts = np.bincount(labels, minlength=len(names))
    ratios = counts[:-1] / counts[1:]
    assert ratios == pytest.approx(np.full(5, 100 ** (1 / 5)), rel=0.35)  # the rarest class has about 120 texts
    films = [text for text, label in zip(texts, labels, strict=True) if names[label].startswith("film")]
    assert sum("restaurant" in text for text in films) < 0.01 * len(films)
    for polarity, word in (("negative", "awful"), ("positive", "wonderful")):
        others = [t for t, label in zip(texts, labels, strict=True) if not names[label].endswith(polarity)]
        own = [t for t, label in zip(texts, labels, strict=True) if names[label].endswith(polarity)]
        assert np.mean([word in text for text in own]) > 2 * np.mean([word in text for text in others])


def test_noise_never_changes_the_topic() -> None:
    _, clean = generate(3000, seed=3, label_noise=0.0, task="topic_sentiment")
    _, noisy = generate(3000, seed=3, label_noise=0.2, task="topic_sentiment")
    changed = [(a, b) for a, b in zip(clean, noisy, strict=True) if a != b]
    assert len(changed) == pytest.approx(600, abs=90)
    assert all(a ^ b == 1 for a, b in changed)
