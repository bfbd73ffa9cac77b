"""Suites of behavioural tests: what a YAML file of them may say, and the cases that its templates stand for.

Three types of test, after CheckList (Ribeiro et al. 2020, "Beyond Accuracy: Behavioral Testing of NLP Models"):
MFT, minimum functionality: the label that a text must get; INV, invariance: a change that must leave the label as it
is; DIR, directional expectation: a change that must move a label's probability in one direction.

``{slot}`` in a text stands for each of the slot's words. Where that makes more texts than ``samples``, as many are
drawn, by the text of the template alone: no other line of the file changes which.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any, Final, Literal

import fsspec
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from configs.exit_codes import UsageError
from configs.gate import SHIPPED_SUITE
from gate.perturbations import PERTURBATIONS

SHIPPED: Final = Path(__file__).parent / "suites"
_SLOT = re.compile(r"\{(\w+)\}")

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9 _-]{0,59}$")]
Line = Annotated[str, Field(min_length=1)]
Lines = Annotated[list[Line], Field(min_length=1)]


class SuiteError(UsageError):
    """A suite that cannot be used; names the file, the test and the field, and the fix."""


class _Test(BaseModel):
    """What every test has. ``samples``: most texts that one template stands for, count."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    capability: Name
    description: Line
    slots: dict[str, Lines] = {}
    samples: int = Field(4, ge=1, le=1000)


class MinimumFunctionality(_Test):
    """``expect``: label to the templates of the texts that must get it."""

    type: Literal["MFT"]
    expect: Annotated[dict[str, Lines], Field(min_length=1)]


class _Change(_Test):
    """``pairs`` of text and changed text; or ``texts`` and one way to change them: ``perturb`` names a mechanical
    change, ``vary`` a slot whose first word is replaced by each other one, ``append`` what is added at the end."""

    texts: Lines | None = None
    perturb: str | None = None
    vary: str | None = None
    append: Annotated[Lines | None, BeforeValidator(lambda value: [value] if isinstance(value, str) else value)] = None
    pairs: Annotated[list[tuple[Line, Line]], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> _Change:
        ways = [name for name in ("perturb", "vary", "append") if getattr(self, name) is not None]
        if self.pairs is not None:
            if self.texts is not None or ways:
                raise ValueError("pairs already say what is changed: remove texts, perturb, vary and append")
        elif self.texts is None or len(ways) != 1:
            raise ValueError(
                f"expected pairs, or texts with one of perturb, vary and append, found {', '.join(ways) or 'none'} "
                f"{'with' if self.texts else 'without'} texts"
            )
        if self.perturb is not None and self.perturb not in PERTURBATIONS:
            raise ValueError(f"perturb: there is no '{self.perturb}'; there are {', '.join(PERTURBATIONS)}")
        return self


class Invariance(_Change):
    """The label stays the same; with ``tolerance``, no class's probability (0 to 1) moves by more than that either."""

    type: Literal["INV"]
    tolerance: float | None = Field(None, ge=0.0, le=1.0)


class Direction(_Change):
    """The probability of ``toward`` changes by at least ``min_change`` (-1 to 1): -0.1 lets it fall by 0.1, 0.05 makes
    it rise by that."""

    type: Literal["DIR"]
    toward: str
    min_change: float = Field(-0.1, ge=-1.0, le=1.0)


Test = MinimumFunctionality | Invariance | Direction


class SuiteFile(BaseModel):
    """The content of a suite's YAML file. ``labels``: the ones that it is about; a model must have them all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    labels: Annotated[list[Line], Field(min_length=1)]
    slots: dict[str, Lines] = {}
    tests: Annotated[list[Annotated[Test, Field(discriminator="type")]], Field(min_length=1)]


@dataclass(frozen=True)
class Case:
    """One text, and what it is changed to (INV, DIR) or the label that it must get (MFT)."""

    text: str
    changed: str | None = None
    expected: str | None = None


@dataclass(frozen=True)
class Suite:
    """A suite with its cases, by test. ``digest``: SHA-256 of the file, hexadecimal."""

    name: str
    labels: tuple[str, ...]
    digest: str
    tests: tuple[tuple[Test, tuple[Case, ...]], ...]

    @property
    def capabilities(self) -> list[str]:
        """In the order of the file, each once."""
        return list(dict.fromkeys(test.capability for test, _ in self.tests))


def load_suites(names: Sequence[str]) -> list[Suite]:
    """The suites that ``names`` mean: bare names of shipped ones, paths, or URLs that fsspec reads.

    Raises SuiteError.
    """
    suites: dict[str, Suite] = {}
    for name in names:
        suite = read_suite(name)
        if suite.name in suites:
            raise SuiteError(f"two suites are called '{suite.name}': change the name in {name}")
        suites[suite.name] = suite
    return list(suites.values())


def read_suite(name: str) -> Suite:
    """One suite, its templates expanded. Raises SuiteError."""
    location = name
    if re.fullmatch(SHIPPED_SUITE, name):
        location = str(SHIPPED / f"{name}.yaml")
        if not Path(location).is_file():
            shipped = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.yaml")))
            raise SuiteError(f"there is no suite '{name}'; shipped: {shipped}. A file of yours needs its path")
    try:
        with fsspec.open(location, "rb") as file:
            content = file.read()
    except (OSError, ImportError, ValueError) as error:
        raise SuiteError(f"the suite {name} cannot be read: {error}") from None
    return parse_suite(content, name)


def parse_suite(content: bytes, where: str) -> Suite:
    """The suite that a file's ``content`` describes; ``where`` names the file in errors. Raises SuiteError."""
    try:
        values = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        hint = "a text that begins with { or stands between [ and ] needs quotes"
        raise SuiteError(f"{where} is not valid YAML ({hint}): {error}") from None
    if not isinstance(values, dict):
        raise SuiteError(f"{where} must hold name, labels and tests, found {type(values).__name__}")
    try:
        file = SuiteFile.model_validate(values)
    except ValidationError as error:
        problems = [f"{where}: {_problem(problem, values)}" for problem in error.errors()]
        raise SuiteError("\n".join(problems)) from None
    tests = []
    for number, test in enumerate(file.tests, 1):
        try:
            tests.append((test, tuple(_cases(test, file))))
        except ValueError as error:
            raise SuiteError(f"{where}: test {number} ({test.capability}): {error}") from None
    return Suite(file.name, tuple(file.labels), hashlib.sha256(content).hexdigest(), tuple(tests))


def _problem(problem: Any, values: Mapping[str, Any]) -> str:
    """One of pydantic's errors in words, with the test's number and capability in front of the field."""
    path, test = list(problem["loc"]), ""
    if path[:1] == ["tests"] and len(path) > 1:
        raw = values["tests"][path[1]]
        capability = raw.get("capability") if isinstance(raw, dict) else None
        test = f"test {path[1] + 1}" + (f" ({capability})" if capability else "") + ": "
        path = path[3:]  # the third part is the type
    field = ".".join(map(str, path))
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(path[-1]), _fields(problem["loc"]), n=1)
        message = "there is no such field" + (f"; did you mean '{near[0]}'?" if near else "")
    elif problem["type"] == "string_type":
        message += f", found {problem['input']!r}: write it in quotes"
    elif not isinstance(problem["input"], dict):
        message += f", found {problem['input']!r}"
    return f"{test}{field}: {message}" if field else f"{test}{message}"


def _fields(location: Sequence[Any]) -> list[str]:
    kinds: dict[str, type[BaseModel]] = {"MFT": MinimumFunctionality, "INV": Invariance, "DIR": Direction}
    return list((kinds[location[2]] if len(location) > 2 else SuiteFile).model_fields)


def _cases(test: Test, file: SuiteFile) -> Iterator[Case]:
    """The cases of one test. Raises ValueError for what cannot be meant; the message begins with the field."""
    slots = {**file.slots, **test.slots}
    if isinstance(test, MinimumFunctionality):
        for label, templates in test.expect.items():
            _refuse_unknown_label("expect", label, file.labels)
            for template in templates:
                for (text,) in _filled("expect", (template,), slots, test.samples):
                    yield Case(text, expected=label)
        return
    if isinstance(test, Direction):
        _refuse_unknown_label("toward", test.toward, file.labels)
    for text, changed in _pairs(test, slots):
        if text == changed:
            raise ValueError(f"{test.perturb or 'the change'} leaves the text as it is: '{text}'")
        yield Case(text, changed)


def _pairs(test: Invariance | Direction, slots: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    if test.pairs is not None:
        templates: Iterable[tuple[str, str]] = test.pairs
    elif test.append is not None:
        templates = ((text, f"{text} {added}") for text in test.texts or () for added in test.append)
    elif test.vary is not None:
        templates = _varied(test.texts or (), test.vary, slots)
    else:
        change = PERTURBATIONS[test.perturb or ""]
        for template in test.texts or ():
            for (text,) in _filled("texts", (template,), slots, test.samples):
                yield text, change(text)
        return
    for pair in templates:
        for text, changed in _filled("pairs" if test.pairs else "texts", pair, slots, test.samples):
            yield text, changed


def _varied(texts: Sequence[str], slot: str, slots: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """Templates in which ``slot`` has its first word, beside those with each other word."""
    if len(slots.get(slot, ())) < 2:
        raise ValueError(f"vary: expected a slot of two words or more, found '{slot}' with {len(slots.get(slot, ()))}")
    first, *others = slots[slot]
    for text in texts:
        if f"{{{slot}}}" not in text:
            raise ValueError(f"texts: '{text}' has no {{{slot}}}, which is to be varied")
        for other in others:
            yield text.replace(f"{{{slot}}}", first), text.replace(f"{{{slot}}}", other)


def _filled(
    field: str, templates: Sequence[str], slots: Mapping[str, Sequence[str]], samples: int
) -> Iterator[tuple[str, ...]]:
    """``templates`` that belong together, with the same words in all of them, at most ``samples`` times."""
    names = list(dict.fromkeys(name for template in templates for name in _SLOT.findall(template)))
    for name in names:
        if name not in slots:
            known = f"there are {', '.join(slots)}" if slots else "there are none"
            raise ValueError(f"{field}: no slot '{name}' for '{templates[0]}'; {known}")
    for words in _drawn([slots[name] for name in names], samples, seed="\n".join(templates)):
        chosen = dict(zip(names, words, strict=True))
        yield tuple(_put(chosen, template) for template in templates)


def _put(words: Mapping[str, str], template: str) -> str:
    return _SLOT.sub(lambda match: words[match[1]], template)


def _drawn(choices: Sequence[Sequence[str]], samples: int, seed: str) -> Iterator[tuple[str, ...]]:
    """All combinations in order, or ``samples`` different ones drawn at random."""
    total = math.prod(map(len, choices))
    if total <= samples:
        yield from itertools.product(*choices)
        return
    draw = Random(seed).random  # the one method that Python promises to keep the same between versions
    places: dict[int, None] = {}
    while len(places) < samples:
        places[int(draw() * total)] = None
    for place in places:
        words = []
        for choice in choices:
            place, index = divmod(place, len(choice))
            words.append(choice[index])
        yield tuple(words)


def _refuse_unknown_label(field: str, label: str, labels: Sequence[str]) -> None:
    if label not in labels:
        raise ValueError(f"{field}: '{label}' is none of the suite's labels: {', '.join(labels)}")
