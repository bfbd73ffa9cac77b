"""The configuration reference, generated from the schema: every setting, its type, bounds, default and meaning.

python -m configs.reference > docs/configuration.md
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from configs.loading import ENV_PREFIX
from configs.schema import Settings
from configs.search import Choice, Int, LogUniform, Uniform
from configs.section import Seconds

_INTRODUCTION = f"""# Configuration reference

Every setting that there is. This page is made from the schema, which checks each value before anything starts:
`python -m configs.reference > docs/configuration.md`; a test compares both.

A setting comes from, later wins: the YAML file of `--config`; the environment, `{ENV_PREFIX}SECTION__FIELD`, for
instance `{ENV_PREFIX}TRAINING__EPOCHS=2`; and `--set section.field=value`. An unknown name is refused with the nearest
one that exists, a value out of bounds with its bounds. Times are seconds, or a text such as `90m`, `1h30m` or `2d`
where the type is *time*.
"""
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "max_length": "length ≤"}
_NAMES = {bool: "true or false", int: "integer", float: "number", str: "text", Any: "anything"}


def reference() -> str:
    """The page, Markdown."""
    parts = [_INTRODUCTION, "## Top level", "", *_table(Settings, "")]
    for name, field in Settings.model_fields.items():
        section = _section_of(field.annotation)
        if section is not None:
            parts += ["", f"## `{name}`", "", _summary(section), "", *_table(section, f"{name}.")]
    parts += ["", "## Dimensions of `search.space`", ""]
    parts += ["A dimension is a mapping with `type`:", "", "| `type` | fields | what it is |", "| --- | --- | --- |"]
    for dimension in (LogUniform, Uniform, Int, Choice):
        (kind,) = get_args(dimension.model_fields["type"].annotation)
        fields = [f"`{name}`" for name in dimension.model_fields if name != "type"]
        parts.append(f"| `{kind}` | {', '.join(fields)} | {_summary(dimension)} |")
    return "\n".join(parts) + "\n"


def _table(section: type[BaseModel], prefix: str) -> list[str]:
    rows = [_row(name, field) for name, field in _settings(section, prefix)]
    return ["| setting | type and bounds | default | what it is |", "| --- | --- | --- | --- |", *rows]


def _settings(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    """Settings of a section and of the sections in it; of the top level only its own."""
    for name, field in section.model_fields.items():
        inner = _section_of(field.annotation)
        if inner is None or type(None) in get_args(field.annotation):
            yield prefix + name, field
        if inner is not None and prefix:
            yield from _settings(inner, f"{prefix}{name}.")


def _row(name: str, field: FieldInfo) -> str:
    bounds = [
        f"{sign} {_number(getattr(found, key))}"
        for found in field.metadata
        for key, sign in _BOUNDS.items()
        if getattr(found, key, None) is not None
    ]
    return (
        f"| `{name}` | {', '.join([_type(field), *bounds])} | {_default(field)} | {_escaped(field.description or '')} |"
    )


def _type(field: FieldInfo) -> str:
    if any(found in field.metadata for found in get_args(Seconds)[1:]):
        return "time" + (" or null" if type(None) in get_args(field.annotation) else "")
    return _name(field.annotation)


def _name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return "time" if annotation is Seconds else _name(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        if all(isinstance(part, type) and issubclass(part, BaseModel) for part in arguments):
            return "dimension"
        return " or ".join(_name(part) for part in arguments)
    if origin is list:
        return f"list of {_name(arguments[0])}"
    if origin is dict:
        return f"mapping of {_name(arguments[0])} to {_name(arguments[1])}"
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return _NAMES[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "*required*"
    value = field.default_factory() if field.default_factory is not None else field.default  # type: ignore[call-arg]
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{_number(value)}`"
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else f"{value:g}" if value else "0"


def _section_of(annotation: Any) -> type[BaseModel] | None:
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _summary(section: type[BaseModel]) -> str:
    return _escaped((section.__doc__ or "").strip().split("\n\n")[0])


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference())
