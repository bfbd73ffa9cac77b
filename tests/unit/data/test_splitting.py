from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_jobs.data.splitting import class_quotas, find_duplicates, shares, stratified
from serve_app.inference.digests import content_id

IDS = [content_id(f"text {n}") for n in range(3000)]


def test_shares_are_uniform_and_independent() -> None:
    test, validation, other = shares(IDS, "test", 13), shares(IDS, "validation", 13), shares(IDS, "test", 14)
    assert ((test >= 0) & (test < 1)).all()
    for drawn in (test, validation, other):
        assert np.histogram(drawn, bins=10, range=(0, 1))[0] == pytest.approx(300, abs=70)
    for other_drawn in (validation, other):
        assert abs(np.corrcoef(test, other_drawn)[0, 1]) < 0.08


def test_a_share_depends_on_nothing_but_its_text() -> None:
    assert shares(IDS[5:9], "test", 13).tolist() == shares(IDS, "test", 13)[5:9].tolist()


def test_stratified_is_the_same_set_for_every_order() -> None:
    labels = np.arange(len(IDS)) % 7 % 3
    chosen = {IDS[i] for i in stratified(IDS, labels, 500, "validation", 13)}
    order = np.random.default_rng(0).permutation(len(IDS))
    shuffled = [IDS[i] for i in order]
    assert {shuffled[i] for i in stratified(shuffled, labels[order], 500, "validation", 13)} == chosen
    assert np.bincount(labels[[IDS.index(one) for one in chosen]]) / 500 == pytest.approx(
        np.bincount(labels) / len(IDS), abs=0.002
    )


def test_a_larger_sample_holds_the_smaller_one() -> None:
    labels = np.arange(len(IDS)) % 2
    small, large = (set(stratified(IDS, labels, count, "sample", 13)) for count in (100, 900))
    assert small < large


@settings(max_examples=200)
@given(st.lists(st.integers(0, 500), min_size=2, max_size=12).filter(any), st.floats(0, 1))
def test_quotas_are_proportional(counts: list[int], share: float) -> None:
    of_class = np.asarray(counts)
    present = int((of_class > 0).sum())
    total = max(present, round(share * int(of_class.sum())))
    quotas = class_quotas(of_class, total)
    assert quotas.sum() == total
    assert (quotas <= of_class).all()
    assert (quotas[of_class > 0] >= 1).all()
    assert (quotas[of_class == 0] == 0).all()
    if (total * of_class / of_class.sum() >= 1)[of_class > 0].all():
        assert np.abs(quotas - total * of_class / of_class.sum()).max() < 1


def test_quotas_need_a_text_per_class() -> None:
    with pytest.raises(ValueError, match="2 texts among 3 classes"):
        class_quotas(np.asarray([5, 5, 5]), 2)


def test_duplicates_and_conflicts() -> None:
    texts = ["a", "b", "a", "c", "b", "d", "d", "a"]
    labels = np.asarray([0, 1, 0, 1, 0, 1, 1, 0])
    found = find_duplicates(texts, labels, [content_id(text) for text in texts])
    assert found.kept.tolist() == [0, 3, 5]  # the first a, c, the first d
    assert found.removed == 3
    assert found.conflicts == [[1, 4]]
    assert found.conflicting_rows == 2


def test_with_given_ids_the_smallest_stays_in_any_order() -> None:
    found = find_duplicates(["a", "a", "a"], np.zeros(3, int), ["n2", "n1", "n3"])
    assert found.kept.tolist() == [1]
