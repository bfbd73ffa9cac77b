"""The jobs under ``ray job submit``, on a Ray that ``ray start`` made, with token authentication on."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from mlflow import MlflowClient

from configs.exit_codes import ExitCode
from serve_app import mlflow_client as names
from tests.integration.search.world import SMALL, arguments
from tests.servers import ray_head, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
REPOSITORY = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
TOKEN = "0123456789abcdef" * 4
LEFT_BEHIND_S = 30.0  # until nothing of a stopped job is on the cluster
RUNTIME_ENV = yaml.safe_load((REPOSITORY / "configs" / "runtime_env.yaml").read_text(encoding="utf-8"))
# Ray Data's, one of each for all jobs of a cluster; they hold no CPU.
RAYS_OWN = {"_StatsActor", "_AutoscalingCoordinatorActor", "ActorLocationTracker"}
KILLED_AT_ONCE = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "0"}}  # SIGKILL right behind the SIGTERM of `ray job stop`

# Promotes, and waits for ever where a stop hurts most: the alias has been moved, and the decision not been ended.
PROMOTION = """
import sys, threading
from gate import registry
from gate.__main__ import main
move = registry.promote_alias
def moved_and_stuck(*arguments):
    move(*arguments)
    print('half-way', flush=True)
    threading.Event().wait()
registry.promote_alias = moved_and_stuck
sys.exit(main(sys.argv[1:]))
"""


@dataclass
class Head:
    """A head node, and the environment that a user's shell has for it."""

    environment: dict[str, str]

    def run(self, name: str, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """``ray job submit``, which waits for the job's end."""
        return self._ray("submit", "--submission-id", name, "--working-dir", ".", "--", *command, **variables)

    def ends(self, name: str, *command: str, code: int = 0) -> str:
        """The log of a job that must end with ``code``."""
        submitted = self.run(name, *command)
        assert self.status(name) == {"status": "FAILED" if code else "SUCCEEDED", "code": code}, submitted.stdout
        assert (submitted.returncode != 0) == (code != 0)
        return self.log(name)

    def start(self, name: str, runtime_env: Mapping[str, Any], *command: str) -> None:
        """A job that runs on."""
        options = ["--no-wait", "--runtime-env-json", json.dumps(runtime_env)]
        done = self._ray("submit", "--submission-id", name, *options, "--working-dir", ".", "--", *command)
        assert done.returncode == 0, done.stdout + done.stderr

    def stop(self, name: str) -> None:
        """``ray job stop``, and afterwards nothing of the job is on the cluster."""
        assert self._ray("stop", name).returncode == 0
        assert self.status(name)["status"] == "STOPPED"
        wait_until(lambda: not self.left(), LEFT_BEHIND_S, self.left)

    def status(self, name: str) -> dict[str, object]:
        """What the job server says of a job."""
        job = self._ask(f"/api/jobs/{name}").json()
        return {"status": job["status"], "code": job["driver_exit_code"]}

    def log(self, name: str) -> str:
        """What a job has printed so far."""
        return str(self._ask(f"/api/jobs/{name}/logs").json()["logs"])

    def left(self) -> list[str]:
        """Actors and placement groups that are on the cluster, and what they hold."""
        found = [actor["class_name"] for actor in self._list("actors") if actor["state"] != "DEAD"]
        found = [name for name in found if name not in RAYS_OWN]
        found += ["placement group" for group in self._list("placement_groups") if group["state"] != "REMOVED"]
        return found

    def _list(self, what: str) -> list[dict[str, Any]]:
        return list(self._ask(f"/api/v0/{what}").json()["data"]["result"]["result"])

    def _ask(self, path: str) -> requests.Response:
        answer = _ask(self.environment["RAY_ADDRESS"], path)
        assert answer.status_code == 200, answer.text
        return answer

    def _ray(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "ray"), "job", *arguments],
            cwd=REPOSITORY, env=self.environment | variables, capture_output=True, text=True, timeout=400,
        )  # fmt: skip


def _ask(url: str, path: str) -> requests.Response:
    return requests.get(f"{url}{path}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30)


def _answers(url: str) -> bool:
    try:
        return _ask(url, "/api/jobs/").status_code == 200
    except requests.RequestException:
        return False


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("head")
    file = folder / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(file),
    }
    with ray_head(folder, 3, environment, _answers) as url:
        yield Head(environment | {"RAY_ADDRESS": url})


@dataclass
class Installation:
    """A home with an MLflow that a promoted model is in; ``run`` is its trial's."""

    home: Path
    run: str
    log: str

    @property
    def sets(self) -> list[str]:
        """For commands about that model."""
        return ["--set", f"home={self.home}", "--set", "tracking.model_name=first", "--set", "gate.minimum_f1=0.2"]

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.home / 'mlflow.db'}")


@pytest.fixture(scope="module")
def installed(head: Head, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Made by the pipeline as a job."""
    home = tmp_path_factory.mktemp("home")
    shutil.copyfile(mlflow_template, home / "mlflow.db")
    out = home / "result.json"
    log = head.ends("promoted", *job("pipeline", home, "--json-file", str(out), search__name="once"))
    result = json.loads(out.read_text())
    assert result["decision"] == "promoted"
    return Installation(home, result["run_id"], log)


def job(module: str, home: Path, *more: str, **changes: str) -> list[str]:
    """A small job of ``ray_jobs``."""
    values = SMALL | {"home": str(home), "search.trials": "1", "search.max_concurrent": "1", "training.epochs": "1",
                      "tracking.model_name": "first"}  # fmt: skip
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    sets = [part for text in arguments(values) for part in ("--set", text)]
    return ["python", "-m", f"ray_jobs.{module}", "--config", "quickstart.yaml", *sets, *more]


def test_the_log_is_for_people(installed: Installation) -> None:
    log = installed.log
    for told in ("reading data from builtin", ": epoch 1/1: ", "gate: promoted: F1 ", "promoted: F1 "):
        assert log.count(f"\n{told}" if told.startswith(("reading", "promoted")) else told) == 1, log
    lines = log.splitlines()
    assert len(lines) == len(set(lines)), "doubled lines"
    assert not re.search(r"\x1b|\r|Traceback|\(pid=|it/s\]|━", log), log


def test_status_follows_the_gate(head: Head, installed: Installation) -> None:
    # The same search, which is over, before a stricter gate.
    strict = {"search__name": "once", "gate__minimum_f1": "1.0", "tracking__model_name": "another"}
    log = head.ends("blocked", *job("pipeline", installed.home, "--resume", "once", **strict), code=ExitCode.BLOCKED)
    assert "gate: blocked" in log


def test_the_gate_as_jobs(head: Head, installed: Installation) -> None:
    python = ["python", "-m", "gate"]
    other = ["--model-name", "second"]
    checked = head.ends("check", *python, "check", "--run-id", installed.run, *installed.sets, *other)
    assert "would be promoted" in checked
    promoted = head.ends("promote", *python, "promote", "--run-id", installed.run, *installed.sets, *other)
    assert "promoted: version 1 of second is production" in promoted
    status = head.ends("status", *python, "status", *installed.sets, *other)
    assert "production  version 1, F1 " in status
    history = head.ends("history", *python, "history", *installed.sets, *other)
    assert len(re.findall(r"^\S+ +promoted +version +1  F1 0\.\d{4} against - ", history, re.MULTILINE)) == 1, history
    assert head.ends("back", *python, "rollback", *installed.sets, *other, code=ExitCode.BLOCKED)
    nobody = head.ends("nobody", *python, "check", "--run-id", "f" * 32, *installed.sets, code=ExitCode.USAGE)
    assert "f" * 32 in nobody


def test_batch_scoring_as_a_job(head: Head, installed: Installation, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": f"a good film, {n}"}) + "\n" for n in range(40)))
    paths = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out"), "--model", "first@production"]
    log = head.ends("score", "python", "-m", "ray_jobs.batch_score", *paths, *installed.sets)
    assert "40 of 40 rows scored by first version 1, 0 rejected" in log
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_relative_paths_and_missing_addresses_are_refused_with_the_fix(head: Head) -> None:
    search = ["python", "-m", "ray_jobs.search", "--config"]
    assert "is a relative path" in head.ends("relative", *search, "configs/quickstart.yaml", code=ExitCode.USAGE)
    assert "MLFLOW_TRACKING_URI" in head.ends("homeless", *search, "quickstart.yaml", code=ExitCode.USAGE)


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "Missing authentication token"),
        ({"RAY_AUTH_TOKEN": "f" * 64}, "Invalid authentication token"),
        ({"RAY_ADDRESS": "http://127.0.0.1:9"}, "Failed to connect to Ray at address: http://127.0.0.1:9"),
    ],
)
def test_who_may_not_submit_is_told_why(head: Head, variables: dict[str, str], told: str) -> None:
    refused = head.run("never", "python", "-c", "1", **variables)
    assert refused.returncode == 1
    assert told in refused.stdout + refused.stderr


def test_a_search_that_is_stopped_leaves_nothing_and_goes_on(head: Head, installed: Installation) -> None:
    search = job("search", installed.home, search__name="stopped", search__scheduler="none", training__epochs="1000")
    journal = installed.home / "searches" / "stopped" / "journal.jsonl"

    def epochs() -> int:
        return journal.read_text().count('"epoch"') if journal.exists() else 0

    # The worst end: no time for anything. What it left RUNNING in MLflow is ended by the next command.
    head.start("killed", KILLED_AT_ONCE, *search)
    wait_until(lambda: epochs() > 0, 200, lambda: head.log("killed"))
    head.stop("killed")
    (trial,) = {event["trial"] for event in map(json.loads, journal.read_text().splitlines()) if "trial" in event}
    before = epochs()

    # With the time that the shipped file gives, it ends what it began itself.
    head.start("resumed", RUNTIME_ENV, *search, "--resume", "stopped")
    wait_until(lambda: epochs() > before, 200, lambda: head.log("resumed"))
    head.stop("resumed")
    assert "go on with it by --resume stopped" in head.log("resumed")
    told = [json.loads(line) for line in journal.read_text().splitlines()]
    assert {event["trial"] for event in told if "trial" in event} == {trial}, "it went on with the trial that there was"
    numbers = [event["metrics"]["epoch"] for event in told if event["event"] == "epoch"]
    assert numbers == list(range(1, len(numbers) + 1)), "after its last epoch"

    experiment = installed.client.get_experiment_by_name("quickstart")
    runs = installed.client.search_runs([experiment.experiment_id], f"tags.`{names.SEARCH_NAME}` = 'stopped'")
    assert {run.info.status for run in runs} == {"KILLED"}


def test_a_promotion_that_is_stopped_half_way_is_repaired_by_the_next_command(
    head: Head, installed: Installation
) -> None:
    promote = ["promote", "--run-id", installed.run, *installed.sets, "--model-name", "third"]
    head.start("half-way", KILLED_AT_ONCE, "python", "-c", PROMOTION, *promote)
    wait_until(lambda: "half-way\n" in head.log("half-way"), 100, lambda: head.log("half-way"))
    head.stop("half-way")
    head.ends("repair", "python", "-m", "gate", "status", *installed.sets, "--model-name", "third",
              "--json-file", str(installed.home / "status.json"))  # fmt: skip
    status = json.loads((installed.home / "status.json").read_text())
    assert status["production_version"] == "1"
    assert [decision["decision"] for decision in status["decisions"]] == ["promoted"]
