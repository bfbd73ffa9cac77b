"""Dockerfile: linted, pinned, without secrets, and what it copies is there. tests/e2e/test_image.py builds it."""

from __future__ import annotations

import fnmatch
import json
import re

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from tests.image import instructions
from tests.unit.ship.tools import PINNED_BY_DIGEST, REPOSITORY, SECRET_NAME, lint, text

DOCKERFILE = instructions()
FINAL = DOCKERFILE[max(i for i, (name, _) in enumerate(DOCKERFILE) if name == "FROM") :]


def rests(name: str, among: list[tuple[str, str]] | None = None) -> list[str]:
    """What stands behind every instruction ``name``."""
    return [rest for found, rest in (among or DOCKERFILE) if found == name]


def test_hadolint_finds_nothing() -> None:
    done = lint("hadolint", "Dockerfile")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_base_is_pinned_and_of_the_python_that_constraints_are_for() -> None:
    bases = [base.partition(" AS ") for base in rests("FROM")]
    outside = [base for base, _, _ in bases if base not in {name for _, _, name in bases}]
    assert len(bases) == 3, "what both have, one that builds, one that runs"
    (base,) = outside
    assert PINNED_BY_DIGEST.fullmatch(base)
    version = re.match(r"python:(\d+\.\d+)\.\d+-slim-\w+@", base)
    assert version
    assert f"on Python {version[1]}" in text("constraints.txt").partition("==")[0]


def test_it_installs_the_pinned_versions_and_brings_nothing_else() -> None:
    environment = " ".join(rests("ENV"))
    assert "PIP_CONSTRAINT=/source/constraints.txt" in environment
    for run in rests("RUN"):
        assert "://" not in run, "an address is the builder's choice"
        assert "apt-get" not in run
    assert not rests("ADD")


def test_no_secret_is_in_a_layer() -> None:
    for name in ("ARG", "ENV"):
        for rest in rests(name):
            assert not SECRET_NAME.search(rest)
    installs = [run for run in rests("RUN") if "pip install" in run or "pip wheel" in run]
    indexed = [run for run in installs if "--no-index" not in run]
    assert indexed
    for run in indexed:
        assert "--mount=type=secret,id=pip.conf" in run, "an index with a password is a secret of the build"
    assert "/run/secrets/pip.conf" in " ".join(rests("ENV"))


def test_it_does_not_run_as_root() -> None:
    (user,) = rests("USER", FINAL)
    assert user == "1000:1000", "a number: Kubernetes' runAsNonRoot cannot check a name"
    after = [name for name, _ in FINAL[[name for name, _ in FINAL].index("USER") + 1 :]]
    assert not {"RUN", "COPY", "USER"} & set(after)


def test_it_serves_with_the_fast_path_and_says_whether_it_lives() -> None:
    command = json.loads(rests("CMD", FINAL)[0])
    assert command[2].index(". configs/fast_path.env") < command[2].index(
        "exec serve run configs/serve_all_interfaces.yaml"
    )
    (health,) = rests("HEALTHCHECK")
    (port,) = rests("EXPOSE")
    assert f"http://127.0.0.1:{port}/health" in health
    assert rests("STOPSIGNAL") == ["SIGINT"]


def test_in_a_container_the_service_is_the_same_but_for_its_host() -> None:
    outside, inside = (yaml.safe_load(text(f"configs/{name}")) for name in ("serve.yaml", "serve_all_interfaces.yaml"))
    ServeDeploySchema.model_validate(inside)
    assert inside["http_options"].pop("host") == "0.0.0.0"
    assert outside["http_options"].pop("host") == "127.0.0.1"
    assert inside == outside


def test_what_it_copies_is_there_and_sent_to_the_build() -> None:
    ignore = text(".dockerignore").splitlines()
    sent = [line[1:].rstrip("/") for line in ignore if line.startswith("!")]
    assert "*" in ignore
    for rest in rests("COPY"):
        if "--from" in rest:
            continue
        *patterns, _ = rest.split()
        for pattern in patterns:
            assert list(REPOSITORY.glob(pattern)), f"{pattern} is copied and does not exist"
            top = pattern.partition("/")[0]
            assert any(fnmatch.fnmatch(top, line) for line in sent), f".dockerignore keeps {pattern} back"


@pytest.mark.parametrize("name", [".git", ".env", ".venv", "tests", ".trialgate"])
def test_the_build_is_not_sent(name: str) -> None:
    sent = [line[1:].rstrip("/") for line in text(".dockerignore").splitlines() if line.startswith("!")]
    assert name not in sent
