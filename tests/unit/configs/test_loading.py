"""Loading settings: layers, names of configs, paths, and messages that tell the fix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import loading
from configs.loading import ConfigError, baseline_settings, load_settings, stored_values
from configs.schema import Settings


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the installed ``configs`` package; the working directory is another one, empty."""
    folder = tmp_path / "installed" / "configs"
    folder.mkdir(parents=True)
    monkeypatch.setattr(loading, "CONFIG_FOLDER", folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return folder


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# --- layers -----------------------------------------------------------------------------------------------------------


def test_each_layer_wins_over_the_one_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(tmp_path / "c.yaml", "training: {epochs: 2, batch_size: 16, learning_rate: 0.001}\n")
    monkeypatch.setenv("TRIALGATE_TRAINING__EPOCHS", "4")
    monkeypatch.setenv("TRIALGATE_TRAINING__BATCH_SIZE", "8")
    training = load_settings(config, ["training.epochs=6"]).training
    assert (training.epochs, training.batch_size, training.learning_rate) == (6, 8, 0.001)
    assert training.max_grad_norm == Settings().training.max_grad_norm, "what no layer sets keeps its default"


@given(layers=st.tuples(*[st.none() | st.integers(1, 1000)] * 3))
def test_the_highest_layer_that_is_set_decides(layers: tuple[int | None, int | None, int | None]) -> None:
    in_yaml, in_environment, in_override = layers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "_read_yaml", lambda _: {} if in_yaml is None else {"training": {"epochs": in_yaml}})
        if in_environment is not None:
            patch.setenv("TRIALGATE_TRAINING__EPOCHS", str(in_environment))
        overrides = [] if in_override is None else [f"training.epochs={in_override}"]
        found = load_settings("memory://c.yaml", overrides).training.epochs
    given_values = [value for value in (in_override, in_environment, in_yaml) if value is not None]
    assert found == (given_values[0] if given_values else Settings().training.epochs)


def test_the_last_of_two_overrides_wins() -> None:
    assert load_settings(None, ["training.epochs=2", "training.epochs=5"]).training.epochs == 5


def test_environment_takes_a_section_as_json_and_deep_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIALGATE_SEARCH__SPACE", '{"training.epochs": {"type": "int", "low": 2, "high": 4}}')
    monkeypatch.setenv("TRIALGATE_DATA__GENERATOR__TEXTS", "50")
    settings = load_settings()
    assert settings.data.generator.texts == 50
    assert settings.search.space["training.epochs"].low == 2


def test_environment_that_is_no_setting_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIALGATE_SHARED", "somewhere")
    assert load_settings() is not None


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("1E-3", 0.001), ("0.5", 0.5), ("2.5e-05", 2.5e-5)],
)
def test_numbers_as_people_write_them(text: str, value: float) -> None:
    assert load_settings(None, [f"training.learning_rate={text}"]).training.learning_rate == value


def test_override_of_lists_nulls_and_the_search_space() -> None:
    settings = load_settings(
        None,
        [
            "data.source=files",
            "data.train=[/d/a.csv, s3://bucket/b.parquet]",
            "search.space.training.learning_rate={type: loguniform, low: 1e-5, high: 1e-3}",
            "data.max_train_texts=null",
        ],
    )
    assert settings.data.train == ["/d/a.csv", "s3://bucket/b.parquet"]
    assert settings.search.space["training.learning_rate"].high == 1e-3
    assert settings.data.max_train_texts is None


# --- unknown keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "unknown", "nearest"),
    [
        ("training.epoch=3", "training.epoch", "training.epochs"),
        ("trainning.epochs=3", "trainning", "training"),
        ("epochs=3", "epochs", "training.epochs"),
        ("data.generator.text=50", "data.generator.text", "data.generator.texts"),
        ("model.architecture.layer=3", "model.architecture.layer", "model.architecture.layers"),
        ("gate.min_f1=0.5", "gate.min_f1", "gate.minimum_f1"),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_named(override: str, unknown: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_settings(None, [override])
    assert f"'{unknown}'" in str(error.value)
    assert f"did you mean '{nearest}'" in str(error.value)


def test_an_unknown_key_in_a_file_names_the_file(tmp_path: Path) -> None:
    config = write(tmp_path / "c.yaml", "serving:\n  prot: 1\n")
    with pytest.raises(ConfigError, match="serving.prot") as error:
        load_settings(config)
    assert str(config) in str(error.value)
    assert "serving.port" in str(error.value)


@pytest.mark.parametrize(
    ("variable", "hint"),
    [("TRIALGATE_TRAINING__EPOCH", "training.epochs"), ("TRIALGATE_TRAINNG__EPOCHS", "TRIALGATE_TRAINING")],
)
def test_a_misspelt_environment_variable_is_refused(variable: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "3")
    with pytest.raises(ConfigError, match=hint):
        load_settings()


# --- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("training.epochs", ["key=value", "training.epochs"]),
        ("=3", ["key=value"]),
        ("training.epochs=0", ["training.epochs", "greater than or equal to 1", "0"]),
        ("training.epochs=many", ["training.epochs", "integer", "many"]),
        ("training=3", ["training", "3"]),
        ("training.epochs.x=3", ["training.epochs", "integer"]),
        ("training.schedule=square", ["training.schedule", "linear", "square"]),
        ("training.learning_rate=.nan", ["training.learning_rate", "finite"]),
        ("data.train=[a.csv]", ["data.train", "data.source=files"]),
        ("training.epochs=[", ["training.epochs", "YAML"]),
    ],
)
def test_messages_name_the_field_and_what_was_found(override: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_settings(None, [override])
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("variable", "value"), [("TRIALGATE_TRAINING", '{"epochs": 2'), ("TRIALGATE_SEARCH__SPACE", "{training.epochs")]
)
def test_an_environment_variable_that_is_not_json_is_named(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIALGATE_HOME", "/somewhere")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=rf"environment: {variable} must be"):
        load_settings()


@pytest.mark.parametrize(
    ("text", "part"),
    [("training: [", "not valid YAML"), ("- a\n- b\n", "mapping"), ("training: 7\n", "training"), ("\x00", "YAML")],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, part: str) -> None:
    config = write(tmp_path / "c.yaml", text)
    with pytest.raises(ConfigError, match=part):
        load_settings(config)


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    config = write(tmp_path / "c.yaml", "# nothing yet\n")
    assert load_settings(config) == load_settings()


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        load_settings(None, ["training.epochs=0", "search.trials=0"])
    assert "training.epochs" in str(error.value)
    assert "search.trials" in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["tracking.uri=postgresql://user:s3cret@host/db", "tracking.model_name=a/b"],
        ["tracking.uri=https://user:s3cret@host/mlflow", "tracking.experiment="],
        ["tracking.uri=user:s3cret@host/mlflow"],
        ["tracking.uri=file://user:s3cret@host/x"],
    ],
)
def test_no_message_shows_a_password(overrides: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_settings(None, overrides)
    assert "s3cret" not in str(error.value)


# --- where configs are looked up --------------------------------------------------------------------------------------


def test_a_bare_name_is_looked_up_in_the_package(shipped: Path) -> None:
    write(shipped / "quickstart.yaml", "training: {epochs: 9}\n")
    for on_cluster in (False, True):
        overrides = ["tracking.uri=http://mlflow:5000"]
        assert load_settings("quickstart.yaml", overrides, on_cluster=on_cluster).training.epochs == 9


@pytest.mark.parametrize("on_cluster", [False, True])
def test_a_bare_name_means_the_same_everywhere(shipped: Path, on_cluster: bool) -> None:
    write(shipped / "quickstart.yaml", "training: {epochs: 9}\nhome: /somewhere\n")
    write(Path("quickstart.yaml"), "training: {epochs: 8}\n")
    assert load_settings("quickstart.yaml", on_cluster=on_cluster).training.epochs == 9
    assert load_settings("./quickstart.yaml", on_cluster=False).training.epochs == 8


def test_a_relative_path_works_for_a_local_command(shipped: Path) -> None:
    write(Path("my/own.yaml"), "training: {epochs: 7}\n")
    assert load_settings("my/own.yaml", on_cluster=False).training.epochs == 7


@pytest.mark.parametrize("name", ["my/own.yaml", "./own.yaml", "own.yaml"])
def test_a_relative_path_is_refused_on_the_cluster_with_the_fix(shipped: Path, name: str) -> None:
    write(shipped / "quickstart.yaml", "{}\n")
    write(Path(name), "training: {epochs: 7}\n")
    with pytest.raises(ConfigError) as error:
        load_settings(name, ["tracking.uri=http://mlflow:5000"], on_cluster=True)
    for part in (name.removeprefix("./"), "absolute", "URL", "quickstart.yaml"):
        assert part in str(error.value)


def test_absolute_paths_and_urls_work_on_the_cluster(tmp_path: Path) -> None:
    config = write(tmp_path / "c.yaml", "training: {epochs: 7}\n")
    for name in (str(config), config.as_uri()):
        assert load_settings(name, ["tracking.uri=http://mlflow:5000"], on_cluster=True).training.epochs == 7


def test_a_config_that_is_not_there_lists_what_ships(shipped: Path) -> None:
    write(shipped / "imdb.yaml", "{}\n")
    with pytest.raises(ConfigError, match=r"imbd\.yaml.*imdb\.yaml"):
        load_settings("imbd.yaml", on_cluster=False)
    with pytest.raises(ConfigError, match="nowhere"):
        load_settings("file:///nowhere/c.yaml")


# --- paths ------------------------------------------------------------------------------------------------------------


def test_a_suite_is_shipped_or_has_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    override = ["gate.behaviour_suites=[sentiment, my/own.yaml, own.yaml, s3://b/own.yaml]"]
    found = load_settings(None, override, on_cluster=False).gate.behaviour_suites
    assert found == ["sentiment", str(tmp_path / "my/own.yaml"), str(tmp_path / "own.yaml"), "s3://b/own.yaml"]
    with pytest.raises(ConfigError, match="gate.behaviour_suites is the relative path 'my/own.yaml'"):
        load_settings(None, [*override, "home=/h", "tracking.uri=http://mlflow:5000"], on_cluster=True)


def test_after_loading_every_local_path_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings(
        None,
        [
            "data.source=files",
            "data.train=[a.csv, s3://b/c.csv]",
            "data.test=[sub/t.csv]",
            "model.checkpoint=./weights",
        ],
    )
    assert settings.home == str(tmp_path / ".trialgate")
    assert settings.tracking.uri == f"sqlite:///{tmp_path}/.trialgate/mlflow.db"
    assert settings.search.storage == str(tmp_path / ".trialgate" / "searches")
    assert settings.serving.cache_dir == str(tmp_path / ".trialgate" / "models")
    assert settings.data.train == [str(tmp_path / "a.csv"), "s3://b/c.csv"]
    assert settings.data.test == [str(tmp_path / "sub" / "t.csv")]
    assert settings.model.checkpoint == str(tmp_path / "weights")
    assert not list(tmp_path.iterdir()), "loading writes nothing"


def test_a_hub_id_is_not_mistaken_for_a_path() -> None:
    checkpoint = "distilbert/distilbert-base-uncased"
    for on_cluster in (False, True):
        overrides = [f"model.checkpoint={checkpoint}", "tracking.uri=http://mlflow:5000"]
        assert load_settings(None, overrides, on_cluster=on_cluster).model.checkpoint == checkpoint


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("home=runs", "home"),
        ("search.storage=runs", "search.storage"),
        ("serving.cache_dir=models", "serving.cache_dir"),
        ("tracking.uri=sqlite:///mlflow.db", "tracking.uri"),
        ("model.checkpoint=./weights", "model.checkpoint"),
    ],
)
def test_relative_paths_are_refused_on_the_cluster(override: str, field: str) -> None:
    overrides = ["tracking.uri=http://mlflow:5000", "search.storage=s3://bucket/x", override]
    with pytest.raises(ConfigError, match=field) as error:
        load_settings(None, overrides, on_cluster=True)
    assert "absolute" in str(error.value)


def test_the_cluster_has_no_default_tracking_address() -> None:
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        load_settings(None, on_cluster=True)


def test_mlflows_own_variable_is_honoured_below_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from-mlflow:5000")
    assert load_settings().tracking.uri == "http://from-mlflow:5000"
    assert load_settings(None, ["tracking.uri=http://ours:1"]).tracking.uri == "http://ours:1"
    monkeypatch.setenv("TRIALGATE_TRACKING__URI", "http://environment:1")
    assert load_settings().tracking.uri == "http://environment:1"


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "file:///tmp/mlruns"])
def test_mlflows_file_store_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.uri.*sqlite"):
        load_settings(None, [f"tracking.uri={uri}"])


def test_relative_sqlite_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        load_settings(None, ["tracking.uri=sqlite:///x/mlflow.db"]).tracking.uri == f"sqlite:///{tmp_path}/x/mlflow.db"
    )
    assert load_settings(None, ["tracking.uri=sqlite:////a/b.db"]).tracking.uri == "sqlite:////a/b.db"


def test_settings_travel_as_json() -> None:
    settings = load_settings(None, ["search.space.training.epochs={type: int, low: 1, high: 3}"])
    travelled = Settings.model_validate(json.loads(json.dumps(settings.model_dump(mode="json"))))
    assert travelled == settings


def _baselines(*overrides: str) -> Settings:
    return load_settings("baselines.yaml", overrides, on_cluster=False)


def test_a_baseline_has_the_common_settings_and_its_own() -> None:
    settings = _baselines("training.batch_size=16", "search.name=first", "baselines.cnet.training.epochs=9")
    own = baseline_settings(settings, "cnet")
    assert (own.training.batch_size, own.training.epochs, own.model.family) == (16, 9, "cnet")
    assert own.search.name == "first-cnet"
    assert own.data == settings.data
    assert not own.baselines


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("baselines.cnet.model.cnet.filter=3", ["baselines.cnet", "model.cnet.filters"]),
        ("baselines.cnet.data.seed=3", ["baselines.cnet.data.seed", "max_train_texts alone"]),
        ("baselines.cnet.gate.minimum_f1=0.1", ["baselines.cnet", "found 'gate'"]),
        ("baselines.cnet.training.epochs=-1", ["baselines.cnet", "training.epochs"]),
        ("baselines.cnet.model.avgnet.width=8", ["baselines.cnet", "model.avgnet", "family=avgnet"]),
    ],
)
def test_a_baseline_that_makes_no_sense_is_refused(override: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        baseline_settings(_baselines(override), "cnet")
    for part in parts:
        assert part in str(error.value)


def test_an_unknown_baseline_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no baseline 'lstm'.*avgnet, cnet, rnn, distilbert"):
        baseline_settings(_baselines(), "lstm")


def test_settings_that_an_earlier_version_stored_are_read() -> None:
    stored = Settings().model_dump(mode="json")
    stored["search"]["time_budget_s"] = stored["search"].pop("time_budget")
    assert Settings.model_validate(stored_values(stored, "settings.json")) == Settings()
    stored["search"]["of_another_version"] = 1
    with pytest.raises(ConfigError, match=r"settings\.json was written by another version.*of_another_version"):
        stored_values(stored, "settings.json")
