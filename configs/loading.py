"""Loads settings: YAML, then environment, then ``--set key=value``; later wins.

The environment names a field as ``TRIALGATE_SECTION__FIELD`` (``TRIALGATE_TRAINING__EPOCHS=2``). A bare config name is
looked up among the files of this package. Afterwards every local path is absolute, because trials, jobs and replicas
run in working directories of their own.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import fsspec
import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, SettingsError

from configs.exit_codes import UsageError
from configs.gate import SHIPPED_SUITE
from configs.schema import Settings

ENV_PREFIX = "TRIALGATE_"
CONFIG_FOLDER = Path(__file__).parent
_RENAMED = {"time_budget_s": "time_budget"}  # under search, as settings were stored until November 2026


class ConfigError(UsageError):
    """Settings that cannot be used; the message names the field and the fix."""


def load_settings(
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    base: Mapping[str, Any] | None = None,
    on_cluster: bool | None = None,
) -> Settings:
    """Settings of ``config`` (bare name, path or URL; None: the defaults) with environment and ``overrides`` on top.

    ``base``: values below all of these, such as those of an earlier search. ``on_cluster`` (default: worked out, see
    ``runs_on_cluster``) refuses relative paths, which would mean a directory that the user cannot see. Raises
    ConfigError.
    """
    on_cluster = runs_on_cluster() if on_cluster is None else on_cluster
    values: dict[str, Any] = {}
    if config is not None:
        location = locate_config(config, on_cluster=on_cluster)
        values = _read_yaml(location)
        _refuse_unknown(values, location)
    values = _merge(dict(base or {}), values)
    values = _merge(values, _environment())
    values = _merge(values, _parse_overrides(overrides))
    _refuse_unknown(values, "settings")
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe_validation_error(error)) from None
    return resolve_paths(settings, on_cluster=on_cluster)


def stored_values(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings that an earlier command stored, under today's names. Raises ConfigError for what is refused today."""
    search = {_RENAMED.get(key, key): value for key, value in values.get("search", {}).items()}
    values = {**values, "search": search}
    try:
        Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where} was written by another version, and this one cannot read it: "
                          f"{describe_validation_error(error)}") from None  # fmt: skip
    return values


def baseline_settings(settings: Settings, name: str) -> Settings:
    """``settings`` as the baseline ``name`` changes them; of ``model`` it takes over what every family has.

    Raises ConfigError for an unknown name and for changes that cannot be compared or used.
    """
    changes = settings.baselines.get(name)
    if changes is None:
        known = ", ".join(settings.baselines) or "none: add some under baselines"
        raise ConfigError(f"there is no baseline '{name}'; the settings have {known}")
    where = f"baselines.{name}"
    sections = ("model", "training", "search", "data")
    for section, values in changes.items():
        if section not in sections or not isinstance(values, dict):
            raise ConfigError(f"{where} holds settings of the sections {', '.join(sections)}, found '{section}'")
    if other := set(changes.get("data", {})) - {"max_train_texts"}:
        raise ConfigError(f"{where}.data.{min(other)}: all baselines have the same data, and may differ in "
                          f"data.max_train_texts alone; set data.{min(other)} for all of them")  # fmt: skip
    _refuse_unknown(changes, where)
    values = settings.model_dump(exclude={"baselines"})
    common = ("max_length", "dropout", "classifier_dropout")
    values["model"] = {key: value for key, value in values["model"].items() if key in common}
    values = _merge(values, changes)
    if settings.search.name is not None:
        values["search"]["name"] = f"{settings.search.name}-{name}"
    try:
        own = Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {describe_validation_error(error)}") from None
    return resolve_paths(own, on_cluster=runs_on_cluster())


def runs_on_cluster() -> bool:
    """Whether this process is a submitted job or a Ray worker, so that its directory is not the user's."""
    if os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):
        return True
    try:
        import ray
    except ImportError:
        return False
    return ray.is_initialized() and ray._private.worker.global_worker.mode == ray._private.worker.WORKER_MODE


def locate_config(config: str | Path, *, on_cluster: bool) -> str:
    """The absolute path or URL that ``config`` means. Raises ConfigError if there is no such file."""
    text = str(config)
    if "://" in text:
        return text
    path = Path(text).expanduser()
    if path.is_absolute():
        found = path
    elif path.name == text and (CONFIG_FOLDER / text).is_file():
        found = CONFIG_FOLDER / text
    elif on_cluster:
        raise ConfigError(
            f"config '{text}' is a relative path, which means nothing on the cluster: use an "
            f"absolute path, a URL, or a bare name that ships with Trialgate ({_shipped()})"
        )
    else:
        found = path.absolute()
    if not found.is_file():
        raise ConfigError(f"config '{text}' not found (looked at {found}); shipped configs: {_shipped()}")
    return str(found)


def resolve_paths(settings: Settings, *, on_cluster: bool) -> Settings:
    """The same settings with home, storage, cache, data and tracking address absolute."""
    settings = settings.model_copy(deep=True)
    if settings.home is None and not on_cluster:
        settings.home = str(Path(".trialgate").absolute())
    settings.home = _absolute("home", settings.home, on_cluster)
    home = settings.home
    tracking, search, serving, data = settings.tracking, settings.search, settings.serving, settings.data
    tracking.uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or None
    if tracking.uri is None:
        if home is None:
            raise ConfigError(
                "tracking.uri is not set, and the default is relative to a directory that the cluster "
                "does not share: set MLFLOW_TRACKING_URI or tracking.uri, for example http://HOST:5000"
            )
        tracking.uri = f"sqlite:///{home}/mlflow.db"
    tracking.uri = _tracking_uri(tracking.uri, on_cluster)
    search.storage = _absolute("search.storage", search.storage, on_cluster) or (home and f"{home}/searches")
    serving.cache_dir = _absolute("serving.cache_dir", serving.cache_dir, on_cluster) or (
        f"{home}/models" if home else str(Path("~/.cache/trialgate/models").expanduser())
    )
    data.path = _absolute("data.path", data.path, on_cluster)
    for field in ("train", "test"):
        urls = getattr(data, field)
        if urls:
            setattr(data, field, [_absolute(f"data.{field}", url, on_cluster) for url in urls])
    settings.gate.behaviour_suites = [
        suite if re.fullmatch(SHIPPED_SUITE, suite) else str(_absolute("gate.behaviour_suites", suite, on_cluster))
        for suite in settings.gate.behaviour_suites
    ]
    batch = settings.batch_score
    batch.input = [str(_absolute("batch_score.input", url, on_cluster)) for url in batch.input]
    batch.output = _absolute("batch_score.output", batch.output, on_cluster)
    checkpoint = settings.model.checkpoint
    if checkpoint and (checkpoint.startswith((".", "~")) or (not on_cluster and Path(checkpoint).is_dir())):
        settings.model.checkpoint = _absolute("model.checkpoint", checkpoint, on_cluster)
    return settings


def describe_validation_error(error: ValidationError) -> str:
    """One line per problem: the dotted field, what is wrong and what was found."""
    lines = []
    for problem in error.errors():
        field = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        found = problem.get("input")
        shown = "" if isinstance(found, dict | BaseModel) or problem["type"] == "value_error" else f", found {found!r}"
        lines.append(f"{field}: {message}{shown}" if problem["type"] != "value_error" and field else message)
    return "\n".join(lines)


def _absolute(field: str, value: str | None, on_cluster: bool) -> str | None:
    if value is None or "://" in value:
        return value
    path = Path(value).expanduser()
    if path.is_absolute():
        return str(path)
    if on_cluster:
        raise ConfigError(
            f"{field} is the relative path '{value}', which means nothing on the cluster: use an absolute path or a URL"
        )
    return str(path.absolute())


def _tracking_uri(uri: str, on_cluster: bool) -> str:
    """``uri`` with an absolute SQLite path; refuses what MLflow's tracking and registry do not take."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        shown = re.sub(r"[^/@]+@", "***@", uri)  # a password may stand there
        raise ConfigError(
            f"tracking.uri is '{shown}': MLflow's file store is no longer supported; use "
            "http(s)://HOST:PORT of an MLflow server, or sqlite:////ABSOLUTE/PATH/mlflow.db"
        )
    if scheme == "sqlite" and not rest.startswith("//"):
        path = rest.removeprefix("/")
        return f"sqlite:///{_absolute('tracking.uri', path, on_cluster)}"
    return uri


def _shipped() -> str:
    return ", ".join(sorted(path.name for path in CONFIG_FOLDER.glob("*.yaml")))


def _read_yaml(location: str) -> dict[str, Any]:
    try:
        with fsspec.open(location, "r", encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except yaml.YAMLError as error:
        raise ConfigError(f"{location} is not valid YAML: {error}") from None
    except (OSError, ImportError, ValueError) as error:
        raise ConfigError(f"{location} cannot be read: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{location} must hold a mapping of sections, found {type(values).__name__}")
    return values


class _Environment(BaseSettings):
    """Only used for pydantic-settings' reading of nested environment names."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__")


def _environment() -> dict[str, Any]:
    known = {f"{ENV_PREFIX}{name}".upper() for name in Settings.model_fields}
    for variable in sorted(os.environ):
        section = variable.upper().partition("__")[0]
        # Names without "__" other than sections belong to the tests and the operator, not to this schema.
        if variable.upper().startswith(ENV_PREFIX) and "__" in variable and section not in known:
            raise ConfigError(_unknown(variable, sorted(known), "environment variable"))
    source = EnvSettingsSource(Settings, env_prefix=ENV_PREFIX, env_nested_delimiter="__")  # type: ignore[arg-type]
    try:
        values = source()
    except SettingsError:
        ours = sorted(name for name in os.environ if name.upper().startswith(ENV_PREFIX))
        sections = known - {f"{ENV_PREFIX}HOME"}
        complex_values = [name for name in ours if name.upper() in sections or os.environ[name][:1] in ("{", "[")]
        broken = [name for name in complex_values if not _is_json(name)]
        raise ConfigError(
            f"environment: {', '.join(broken)} must be a JSON object; a single field is set like "
            f"{ENV_PREFIX}TRAINING__EPOCHS=2"
        ) from None
    return {key: value for key, value in values.items() if value is not None}


def _is_json(variable: str) -> bool:
    try:
        json.loads(os.environ[variable])
    except json.JSONDecodeError:
        return False
    return True


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        key = key.strip()
        if not separator or not key:
            raise ConfigError(f"--set takes key=value, found '{override}'")
        try:
            value = yaml.safe_load(text) if text else None
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {key}: the value '{text}' is not valid YAML: {error}") from None
        values = _merge(values, _nested(key, _number(value)))
    return values


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; a number is what anybody means by it."""
    if isinstance(value, str):
        try:
            return json.loads(value) if value[:1] in "-0123456789" else value
        except json.JSONDecodeError:
            return value
    return value


def _nested(key: str, value: Any) -> dict[str, Any]:
    if key.startswith("search.space."):  # the keys of the space are dotted names themselves
        name = key.removeprefix("search.space.")
        return {"search": {"space": {name: value}}}
    nested: Any = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return typing.cast(dict[str, Any], nested)


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``top`` over it, section by section; lists and the dimensions of a space are replaced whole."""
    merged = dict(base)
    for key, value in top.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict) and "type" not in value:
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _refuse_unknown(values: dict[str, Any], where: str) -> None:
    for path, valid in _unknown_keys(values, Settings, ()):
        every = {".".join((*path[:-1], name)) for name in valid}
        raise ConfigError(f"{where}: {_unknown('.'.join(path), sorted(every), 'key')}")


def _unknown_keys(
    values: dict[str, Any], model: type[BaseModel], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    for key, value in values.items():
        if key not in model.model_fields:
            yield (*path, str(key)), list(model.model_fields)
            continue
        section = _section_of(model.model_fields[key].annotation)
        if section is not None and isinstance(value, dict):
            yield from _unknown_keys(value, section, (*path, key))


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, also where it may be None; not for mappings of sections."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (typing.Union, types.UnionType):
        for part in get_args(annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                return part
    return None


def _every_key(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        section = _section_of(field.annotation)
        if section is not None:
            yield from _every_key(section, f"{prefix}{name}.")


def _unknown(key: str, siblings: list[str], kind: str) -> str:
    """Names the nearest valid key: first among its siblings, then anywhere."""
    near = difflib.get_close_matches(key, siblings, n=1, cutoff=0.6)
    if not near and kind == "key":
        last = key.rpartition(".")[2]
        near = [name for name in _every_key(Settings) if name.rpartition(".")[2] == last][:1]
        near = near or difflib.get_close_matches(key, list(_every_key(Settings)), n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"valid here: {', '.join(siblings)}"
    return f"unknown {kind} '{key}'; {hint}"
