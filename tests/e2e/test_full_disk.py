"""A disk that fills in the middle of a search: it ends, keeps what it has, and goes on when there is room again."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.exit_codes import ExitCode
from serve_app import mlflow_client as names
from serve_app.inference.engine import Engine
from tests.e2e.processes import Command
from tests.integration.search.world import SMALL, arguments, small_settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(700)]

EPOCHS = 12


class SmallDisk:
    """A file system in memory with a limit, mounted on ``folder`` for the commands that are run ``through`` it.

    Not only root may have one: the mount is in a namespace, which lives as long as a process in it.
    """

    def __init__(self, folder: Path, size: str) -> None:
        mounted = 'mount -t tmpfs -o size="$2" tmpfs "$1" && echo ready && exec cat'
        self._holder = subprocess.Popen(
            ["unshare", "--map-root-user", "--mount", "sh", "-c", mounted, "sh", str(folder), size],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._holder.stdout is not None
        self.ready = self._holder.stdout.readline() == "ready\n"
        self._root = f"/proc/{self._holder.pid}/root"
        self._filler = self.seen(folder) / "of somebody else"

    def through(self, cwd: Path) -> list[str]:
        """What makes a command see it."""
        enter = ["nsenter", f"--target={self._holder.pid}", "--user", "--mount", "--preserve-credentials"]
        return [*enter, "env", f"--chdir={cwd}"]

    def seen(self, path: Path) -> Path:
        """The path by which this process sees a ``path`` on it."""
        return Path(f"{self._root}{path}")

    def fill(self) -> None:
        """Leaves no room."""
        with contextlib.suppress(OSError), open(self._filler, "wb", buffering=0) as file:
            while file.write(bytes(1024)):
                pass

    def make_room(self) -> None:
        """Takes it back."""
        self._filler.unlink()

    def close(self) -> None:
        """The commands on it must have ended."""
        self._holder.communicate()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    (tmp_path / "disk").mkdir()
    made = SmallDisk(tmp_path / "disk", "24m")
    yield made
    made.close()


def test_a_disk_that_fills_ends_a_search_that_goes_on_when_there_is_room(
    disk: SmallDisk, home: Path, tmp_path: Path
) -> None:
    if not disk.ready:
        pytest.skip("no small disk: this user may not mount one")
    values = SMALL | {
        "home": str(home),
        "search.storage": str(tmp_path / "disk"),
        "search.name": "full",
        "search.trials": "2",
        "search.scheduler": "none",
        "training.epochs": str(EPOCHS),
    }
    sets = [part for text in arguments(values) for part in ("--set", text)]
    journal = disk.seen(tmp_path / "disk" / "full" / "journal.jsonl")

    def command(*more: str) -> Command:
        through = disk.through(tmp_path)
        return Command("ray_jobs.search", "--config", "quickstart.yaml", *sets, *more, cwd=tmp_path, through=through)

    def epochs() -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for event in map(json.loads, journal.read_text().splitlines()):
            if event["event"] == "epoch":
                found.setdefault(event["trial"], []).append(event["metrics"]["epoch"])
        return found

    search = command()
    search.wait_for(f"epoch 2/{EPOCHS}", 200)
    disk.fill()
    assert search.finished(120) == ExitCode.UNREACHABLE, search.output
    assert search.left_behind(10) == []
    assert "No space left on device" in search.output
    assert "--resume full" in search.output
    assert "Traceback" not in search.output
    assert journal.read_text().endswith("\n")
    before = epochs()
    assert all(told == list(range(1, len(told) + 1)) for told in before.values())
    client = names.connect(small_settings(home).tracking)
    experiment = client.get_experiment_by_name("quickstart")
    assert experiment is not None
    (parent,) = client.search_runs([experiment.experiment_id], f"tags.`{names.KIND}` = '{names.KIND_SEARCH}'")
    best = client.get_run(parent.data.tags[names.BEST_RUN])
    assert Engine.load(disk.seen(Path(best.data.tags[names.MODEL_URI]))).labels == ("negative", "positive")

    disk.make_room()
    out = tmp_path / "result.json"
    resumed = command("--resume", "full", "--json-file", str(out))
    assert resumed.finished(300) == ExitCode.OK, resumed.output
    assert json.loads(out.read_text())["trials"] == {"finished": 2, "stopped_early": 0, "failed": 0}
    assert list(epochs().values()) == [list(range(1, EPOCHS + 1))] * 2
