"""Where labelled texts come from: the hub, the aclImdb folder, files, or the built-in generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fsspec

from configs.data import DataConfig
from ray_jobs.data import generator
from ray_jobs.data.files import Columns, read_files, reading, redacted, require_columns
from ray_jobs.data.rows import DataError, RawData, Rows


def load_raw(data: DataConfig) -> RawData:
    """The raw rows of ``data.source``. Raises DataError when they cannot be read."""
    sources: dict[str, Callable[[DataConfig], RawData]] = {
        "builtin": _builtin,
        "hub": _hub,
        "aclimdb": _aclimdb,
        "files": _files,
    }
    return sources[data.source](data)


def _builtin(data: DataConfig) -> RawData:
    settings = data.generator
    splits = []
    for split, start, count in (
        ("train", 0, settings.texts),
        ("test", generator.TEST_START, settings.test_texts),
    ):
        texts, labels = generator.generate(
            count,
            settings.seed,
            label_noise=settings.label_noise,
            start=start,
            task=settings.task,
            imbalance=settings.imbalance,
        )
        slices = {}
        if data.slice_columns and split == "test":
            slices["topic"] = generator.topics(
                count, settings.seed, start=start, task=settings.task, imbalance=settings.imbalance
            )
        parts = [(f"generated {split} texts", count)]
        splits.append(Rows(texts=texts, labels=labels, ids=None, parts=parts, slices=slices))
    provenance = f"builtin:v{generator.VERSION} seed {settings.seed}, label noise {settings.label_noise:g}"
    if (settings.task, settings.imbalance) != ("sentiment", 1.0):
        provenance += f", {settings.task}, imbalance {settings.imbalance:g}"
    return RawData(splits[0], splits[1], generator.class_names(settings.task), provenance)


def _files(data: DataConfig) -> RawData:
    columns, of_train = _columns(data, in_train=not data.test)
    train, names = read_files(data.train or [], of_train, "data.train")
    test = None
    if data.test:
        test, test_names = read_files(data.test, columns, "data.test")
        if names and test_names and names != test_names:
            raise DataError(
                f"{test.parts[0][0]}: its metadata name the classes {list(test_names)}, but the training "
                f"files have {list(names)}: write both with the same classes in the same order"
            )
    return RawData(train, test, names, "files: " + ", ".join(redacted(url) for url in data.train or []))


def _aclimdb(data: DataConfig) -> RawData:
    """The unpacked archive: {train,test}/{pos,neg}/*.txt. train/unsup has no labels and is not read."""
    folder = str(data.path)
    name = redacted(folder)
    with reading(name, "correct data.path"):
        filesystem, root = fsspec.core.url_to_fs(folder)
        if not filesystem.isdir(root):
            raise DataError(f"{name} is not a folder: set data.path to the unpacked aclImdb (it holds train and test)")
    splits = []
    for split in ("train", "test"):
        texts: list[Any] = []
        labels: list[Any] = []
        parts: list[tuple[str, int]] = []
        for label, class_folder in enumerate(("neg", "pos")):
            place = f"{root.rstrip('/')}/{split}/{class_folder}"
            files = sorted(filesystem.glob(f"{place}/*.txt")) if filesystem.isdir(place) else []
            if not files:
                raise DataError(
                    f"{name}/{split}/{class_folder} has no .txt files: set data.path to the folder "
                    "aclImdb, with train/pos, train/neg, test/pos and test/neg"
                )
            for path in files:
                shown = f"{name}/{split}/{class_folder}/{path.rpartition('/')[2]}"
                with reading(shown, "unpack the archive again"), filesystem.open(path, "rb") as file:
                    texts.append(file.read().decode("utf-8-sig"))
                labels.append(label)
                parts.append((shown, 1))
        splits.append(Rows(texts=texts, labels=labels, ids=None, parts=parts, one_text_per_file=True))
    return RawData(splits[0], splits[1], ("neg", "pos"), f"aclimdb: {name}")


def _hub(data: DataConfig) -> RawData:
    """Splits ``train`` and, where there is one, ``test`` of a hub dataset (or of a local folder of data files)."""
    import datasets  # takes a second to import, and only this source needs it

    hub_id = str(data.hub_id)
    with reading(f"hub dataset '{hub_id}'", "check data.hub_id, data.hub_config, data.hub_revision and the network"):
        loaded = datasets.load_dataset(hub_id, name=data.hub_config, revision=data.hub_revision)
    if "train" not in loaded:
        raise DataError(
            f"hub dataset '{hub_id}' has no split 'train'; found: {', '.join(map(str, loaded))}: choose "
            "another data.hub_config, or export the split and use data.source files"
        )
    has_test = "test" in loaded
    if has_test and data.label_column in loaded["test"].column_names:
        # How the hub marks a test split whose labels are withheld: a benchmark's, not ours.
        has_test = set(loaded["test"][data.label_column]) != {-1}
    columns, of_train = _columns(data, in_train=not has_test)
    train = _hub_rows(loaded["train"], of_train, f"hub dataset '{hub_id}', split train")
    test = _hub_rows(loaded["test"], columns, f"hub dataset '{hub_id}', split test") if has_test else None
    feature = loaded["train"].features[columns.label]
    names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    revision = f"@{data.hub_revision}" if data.hub_revision else ""
    config = f" ({data.hub_config})" if data.hub_config else ""
    return RawData(train, test, names, f"hub: {hub_id}{config}{revision}")


def _hub_rows(split: Any, columns: Columns, name: str) -> Rows:
    require_columns(columns, split.column_names, name)
    if not len(split):
        raise DataError(f"{name} has no rows: choose another data.hub_config")
    return columns.rows([list(split[column]) for column in columns.names], name)


def _columns(data: DataConfig, in_train: bool) -> tuple[Columns, Columns]:
    """What is read of the test split and of train, whose slices count only if the test split is cut off it."""
    fixed = (data.text_column, data.label_column, data.id_column)
    test = Columns(*fixed, slices=tuple(data.slice_columns))
    return test, test if in_train else Columns(*fixed)
