from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from configs.data import DataConfig, GeneratorConfig
from ray_jobs.data.prepare import prepare
from ray_jobs.data.rows import DataError
from ray_jobs.data.sources import load_raw
from tests.unit.data.builders import files, reviews, write_csv


def test_builtin_sizes_do_not_change_each_other() -> None:
    def load(**sizes: int) -> DataConfig:
        return DataConfig(generator=GeneratorConfig(**sizes))

    small, large = load_raw(load(texts=50, test_texts=20)), load_raw(load(texts=80, test_texts=40))
    assert small.test is not None
    assert large.test is not None
    assert large.train.texts[:50] == small.train.texts
    assert large.test.texts[:20] == small.test.texts
    assert not set(large.train.texts) & set(large.test.texts)
    assert small.class_names == ("negative", "positive")
    assert "seed 7" in small.provenance


@pytest.fixture
def acl_imdb(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for label in ("pos", "neg"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for number in range(6):
                (folder / f"{number}_9.txt").write_text(f"{split} {label} café {number}<br />end", encoding="utf-8")
    (tmp_path / "train" / "unsup").mkdir()
    (tmp_path / "train" / "unsup" / "0_0.txt").write_text("no label")
    (tmp_path / "train" / "labeledBow.feat").write_text("1 2:3")
    return tmp_path


def test_aclimdb(acl_imdb: Path) -> None:
    data = DataConfig(source="aclimdb", path=str(acl_imdb), validation_fraction=0.2)
    raw = load_raw(data)
    assert (len(raw.train), len(raw.test or ())) == (12, 12)
    assert raw.train.where(0) == f"{acl_imdb}/train/neg/0_9.txt"
    dataset = prepare(data)
    assert dataset.label_names == ("neg", "pos")
    assert dataset.f1.key == "binary:pos"
    assert sorted(dataset.test.texts)[0] == "test neg café 0\nend"
    assert all(("pos" in text) == label for text, label in zip(dataset.test.texts, dataset.test.labels, strict=True))


def test_aclimdb_errors(acl_imdb: Path) -> None:
    data = DataConfig(source="aclimdb", path=str(acl_imdb))
    (acl_imdb / "test" / "pos" / "3_9.txt").write_text("  ")
    with pytest.raises(DataError, match=r"test/pos/3_9\.txt: the text is empty"):
        prepare(data)
    (acl_imdb / "test" / "pos" / "3_9.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"test/pos/3_9\.txt cannot be read \(UnicodeDecodeError"):
        load_raw(data)
    for file in (acl_imdb / "test" / "neg").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"test/neg has no \.txt files: set data\.path to the folder aclImdb"):
        load_raw(data)
    with pytest.raises(DataError, match=r"/nowhere is not a folder: set data\.path"):
        load_raw(DataConfig(source="aclimdb", path="/nowhere"))


def hub_folder(folder: Path, **splits: dict[str, list]) -> str:  # type: ignore[type-arg]
    """A folder that ``load_dataset`` takes in place of a hub id, with ClassLabel names in it."""
    label = datasets.ClassLabel(names=["bad", "good"])
    for split, columns in splits.items():
        others = {name: datasets.Value("string") for name in columns}
        features = datasets.Features(others | {"label": label})
        datasets.Dataset.from_dict(columns, features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def test_hub_keeps_class_names_and_ignores_other_splits(tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(20)]
    hub_id = hub_folder(
        tmp_path,
        train={"text": texts, "label": [0, 1] * 10},
        test={"text": ["new one", "new two"], "label": [0, 1]},
        unsupervised={"text": ["no label"], "label": [-1]},
    )
    dataset = prepare(DataConfig(source="hub", hub_id=hub_id))
    assert dataset.label_names == ("bad", "good")
    assert dataset.f1.key == "binary:good"
    assert (len(dataset.train) + len(dataset.validation), len(dataset.test)) == (20, 2)
    with pytest.raises(DataError, match=r"split train has no column 'body'; found columns: text, label"):
        load_raw(DataConfig(source="hub", hub_id=hub_id, text_column="body"))


def test_hub_slices_are_those_of_the_split_that_is_tested_on(tmp_path: Path) -> None:
    train = {"text": [f"text {n}" for n in range(20)], "label": [0, 1] * 10, "place": ["here", "there"] * 10}
    for labels, expected in (([0, 1], (None, ["far", "near"])), ([-1, -1], (train["place"], None))):
        folder = tmp_path / str(labels[0])
        folder.mkdir()
        test = {"text": ["new one", "new two"], "label": labels, "place": ["far", "near"]}
        raw = load_raw(DataConfig(source="hub", hub_id=hub_folder(folder, train=train, test=test),
                                  slice_columns=["place"]))  # fmt: skip
        assert (raw.train.slices.get("place"), raw.test and raw.test.slices["place"]) == expected


def test_hub_test_split_without_labels_is_none(tmp_path: Path) -> None:
    hub_id = hub_folder(
        tmp_path,
        train={"text": [f"text {n}" for n in range(20)], "label": [0, 1] * 10},
        test={"text": ["a", "b"], "label": [-1, -1]},
    )
    assert load_raw(DataConfig(source="hub", hub_id=hub_id)).test is None


def test_hub_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"hub dataset '/nowhere' does not exist: check data\.hub_id"):
        load_raw(DataConfig(source="hub", hub_id="/nowhere"))
    with pytest.raises(DataError, match=r"hub dataset 'some/thing' cannot be read .*: check data\.hub_id.*network"):
        load_raw(DataConfig(source="hub", hub_id="some/thing"))
    hub_id = hub_folder(tmp_path, test={"text": ["a", "b"], "label": [0, 1]})
    with pytest.raises(DataError, match=r"has no split 'train'; found: test"):
        load_raw(DataConfig(source="hub", hub_id=hub_id))


def test_files_of_the_same_content_in_another_format_have_the_same_digest(tmp_path: Path) -> None:
    texts, labels = reviews(60)
    csv_path = write_csv(tmp_path / "a.csv", texts, labels)
    datasets.Dataset.from_dict({"text": texts, "label": labels}).to_json(tmp_path / "a.jsonl")
    digests = {prepare(files(path)).test.digest for path in (csv_path, str(tmp_path / "a.jsonl"))}
    assert len(digests) == 1
