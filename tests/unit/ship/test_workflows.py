""".github: linted, pinned by commit, least permissions, no secret or foreign text in a script, commands that exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.dashboard.modules.job.cli import submit

import gate.__main__
from serve_app import smoke
from tests.unit.ship.tools import IMAGE, PROJECT, REPOSITORY, lint, text, vendored_schema

WORKFLOWS = {path.name: path for path in sorted((REPOSITORY / ".github/workflows").glob("*.yml"))}
ACTIONS = sorted((REPOSITORY / ".github/actions").glob("*/action.yml"))
LOADED: dict[str, dict[str, Any]] = {
    # YAML reads the key `on` as a boolean
    name: {"on" if key is True else key: value for key, value in yaml.safe_load(path.read_text("utf-8")).items()}
    for name, path in WORKFLOWS.items()
}
EACH_JOB = [(name, job, values) for name, workflow in LOADED.items() for job, values in workflow["jobs"].items()]
each_job = pytest.mark.parametrize(("workflow", "job", "values"), EACH_JOB, ids=[f"{w}-{j}" for w, j, _ in EACH_JOB])


def steps() -> Iterator[dict[str, Any]]:
    """Every step of every workflow and action."""
    for _, _, values in EACH_JOB:
        yield from values["steps"]
    for action in ACTIONS:
        yield from yaml.safe_load(action.read_text(encoding="utf-8"))["runs"]["steps"]


def step(job: str, name: str) -> dict[str, Any]:
    (found,) = [step for step in LOADED["deploy.yml"]["jobs"][job]["steps"] if step.get("name") == name]
    return dict(found)


def test_the_linter_finds_nothing() -> None:
    done = lint("jactionlint")
    assert done.returncode == 0, done.stdout + done.stderr


def test_they_are_valid() -> None:
    for values in LOADED.values():
        jsonschema.validate(values, vendored_schema("github-workflows"))
    for action in ACTIONS:
        jsonschema.validate(yaml.safe_load(action.read_text(encoding="utf-8")), vendored_schema("github-actions"))


def test_actions_are_pinned_by_commit_with_their_version_beside() -> None:
    pins: dict[str, set[str]] = {}
    for path in [*WORKFLOWS.values(), *ACTIONS]:
        for used in re.findall(r"uses: (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            if used.startswith("./"):
                assert (REPOSITORY / used / "action.yml").is_file()
                continue
            match = re.fullmatch(r"([\w-]+/[\w-]+)@([0-9a-f]{40}) # v\d+\.\d+\.\d+", used)
            assert match, f"{path.name}: {used}"
            pins.setdefault(match[1], set()).add(used)
    assert "actions/checkout" in pins
    assert all(len(versions) == 1 for versions in pins.values()), "one version of an action everywhere"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_only_read(name: str) -> None:
    workflow = LOADED[name]
    assert workflow["permissions"] == {"contents": "read"}
    assert not [job for job, values in workflow["jobs"].items() if "permissions" in values]
    assert "concurrency" in workflow
    assert workflow["defaults"]["run"]["shell"] == "bash"
    assert "pull_request_target" not in workflow["on"]


@each_job
def test_a_job_ends_and_leaves_no_credentials(workflow: str, job: str, values: dict[str, Any]) -> None:
    assert 0 < values["timeout-minutes"] <= 350
    checkouts = [step for step in values["steps"] if step.get("uses", "").startswith("actions/checkout@")]
    assert [step["with"] for step in checkouts] == [{"persist-credentials": False}]
    if "self-hosted" in values["runs-on"]:
        assert "github.event_name != 'pull_request'" in values["if"], "code of a fork on a machine of one's own"


def test_scripts_hold_no_expression_and_secrets_go_to_single_steps() -> None:
    for found in steps():
        assert "${{" not in found.get("run", ""), "text of others would be run: hand it over in env"
        assert "set -x" not in found.get("run", "")
    for _, _, values in EACH_JOB:
        assert "secrets." not in str(values.get("env", {}))
        for found in values["steps"]:
            assert "secrets." not in str(found.get("with", {}))
    for path in WORKFLOWS.values():
        assert not re.search(r"secrets: inherit|toJSON\(secrets", path.read_text(encoding="utf-8"))


def test_the_matrix_has_every_python_that_is_supported() -> None:
    matrix = LOADED["ci.yml"]["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert PROJECT["requires-python"] == f">={matrix[0]}"
    prefix = "Programming Language :: Python :: "
    supported = {line.removeprefix(prefix) for line in PROJECT["classifiers"] if line.startswith(prefix)}
    assert supported <= set(matrix)


def test_ci_checks_what_is_promised() -> None:
    jobs = LOADED["ci.yml"]["jobs"]
    assert {"lint", "test", "slow", "image", "real-data"} == set(jobs)
    scripts = {job: "\n".join(step.get("run", "") for step in values["steps"]) for job, values in jobs.items()}
    assert "ruff check ." in scripts["lint"]
    assert "mypy" in scripts["lint"]
    assert f"docker build --tag {IMAGE} " in scripts["image"]
    assert "-m realdata" in scripts["real-data"]
    assert jobs["real-data"]["steps"][-1]["env"] == {"TRIALGATE_SHARED": "${{ vars.TRIALGATE_SHARED }}"}


def _commands(script: str, module: str) -> list[list[str]]:
    """The arguments of every `python -m MODULE` in a script, without redirections and pipes."""
    lines = re.findall(rf"python -m {re.escape(module)} ([^|>\n]+)", script)
    return [shlex.split(line) for line in lines]


def test_deploy_runs_commands_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    script = text(".github/workflows/deploy.yml")
    by_gate = _commands(script, "gate")
    assert [arguments[0] for arguments in by_gate] == ["check", "promote", "rollback"]
    for arguments in by_gate:
        with pytest.raises(SystemExit):
            gate.__main__.main([arguments[0], "--help"])
        told = capsys.readouterr().out
        assert all(option in told for option in arguments if option.startswith("--"))
    smokes = _commands(script, "serve_app.smoke")
    assert len(smokes) == 2
    with pytest.raises(SystemExit):
        smoke.main(["--help"])
    told = capsys.readouterr().out
    assert all(option in told for arguments in smokes for option in arguments if option.startswith("--"))


def test_the_search_is_submitted_with_the_code_and_the_shipped_environment(tmp_path: Path) -> None:
    """What reaches ``ray``, which here is a script that prints its arguments."""
    ray = tmp_path / "ray"
    ray.write_text(
        "#!/bin/sh\nprintf '%s\\n' \"$@\" > arguments\necho best trial: run 0123456789abcdef0123456789abcdef,\n"
    )
    ray.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB": "deploy-1-1", "CONFIG": "imdb.yaml",
                   "MLFLOW_TRACKING_URI": "http://mlflow:5000", "GITHUB_OUTPUT": str(tmp_path / "output")}  # fmt: skip
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step("train", "Search")["run"]]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert (tmp_path / "output").read_text() == f"run={'0123456789abcdef' * 2}\n"
    given = (tmp_path / "arguments").read_text().splitlines()
    split = given.index("--")
    assert given[:2] == ["job", "submit"]
    options = dict(zip(given[2:split:2], given[3:split:2], strict=True))
    assert options == {
        "--submission-id": "deploy-1-1",
        "--working-dir": ".",
        "--runtime-env": "configs/runtime_env.yaml",
    }
    known = {option for parameter in submit.params for option in parameter.opts}
    assert set(options) <= known
    assert (REPOSITORY / options["--runtime-env"]).is_file()
    assert given[split + 1 :] == ["python", "-m", "ray_jobs.search", "--config", "imdb.yaml",
                                  "--set", "tracking.uri=http://mlflow:5000"]  # fmt: skip


def test_the_run_is_read_from_the_line_that_a_search_prints() -> None:
    (expression,) = re.findall(r"sed -n '([^']+)'", step("train", "Search")["run"])
    source = text("ray_jobs/search.py")
    (line,) = re.findall(r'f"(best trial: run .*)"$', source, re.MULTILINE)
    run = "0123456789abcdef" * 2
    printed = f"(job) {line.replace('{best.run_id}', run)}\n"
    done = subprocess.run(["sed", "-n", expression], input=printed, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == run


def test_a_promotion_waits_for_approval_and_a_failed_smoke_test_goes_back() -> None:
    jobs = LOADED["deploy.yml"]["jobs"]
    assert jobs["promote"]["environment"] == "production"
    assert jobs["promote"]["needs"] == ["train", "gate"]
    assert "needs.gate.result == 'success'" in jobs["promote"]["if"]
    names = [step.get("name") for step in jobs["promote"]["steps"]]
    assert names[-4:] == ["Promote", "Smoke test", "Go back", "Smoke test of what was gone back to"]
    back = step("promote", "Go back")
    assert back["if"] == "${{ always() && steps.promote.outcome == 'success' && steps.smoke.outcome != 'success' }}"
    assert back["env"]["VERSION"] == "${{ steps.promote.outputs.version }}"
    assert '--only-from "$VERSION"' in back["run"], "only what this run promoted is taken back"
    assert not [step for step in jobs["promote"]["steps"] if step.get("continue-on-error")], "it would end green"
    assert LOADED["deploy.yml"]["concurrency"] == {"group": "deploy", "cancel-in-progress": False}


@pytest.mark.parametrize(("extras", "expected"), [("", "."), ("dev,ship", ".[dev,ship]")])
def test_the_install_action_names_what_pip_takes(extras: str, expected: str) -> None:
    (install,) = [found for found in steps() if "EXTRAS" in found.get("env", {})]
    line = install["run"].strip().splitlines()[-1].replace("python -m pip install -e", "printf %s")
    ran = subprocess.run(["bash", "-c", line], env={"EXTRAS": extras}, check=True, capture_output=True, text=True)
    assert ran.stdout == expected
