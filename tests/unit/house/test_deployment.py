"""The files for `ray up`: pinned, nothing open, nothing secret. Their keys are checked by configs.cluster_check."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.mode import fast_path_variables

REPOSITORY = Path(__file__).resolve().parents[3]

SECRETS = re.compile(r"AKIA[0-9A-Z]{16}|-----BEGIN|(?i:password|secret|api_?key)\s*[:=]\s*\S")


def _ray_pin() -> str:
    match = re.search(r"^ray==(\S+)$", (REPOSITORY / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert match
    return match[1]


FILES = ("cluster.yaml", "configs/cluster-local.yaml")


@pytest.fixture(scope="module", params=FILES)
def cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A file as Ray completes it."""
    from ray.autoscaler._private.util import prepare_config

    config: dict[str, Any] = prepare_config(yaml.safe_load((REPOSITORY / request.param).read_text(encoding="utf-8")))
    return config


def test_the_head_does_no_work() -> None:
    aws, local = (yaml.safe_load((REPOSITORY / name).read_text(encoding="utf-8")) for name in FILES)
    types = aws["available_node_types"]
    assert types[aws["head_node_type"]]["resources"] == {"CPU": 0}
    assert sum(kind["max_workers"] for kind in types.values()) <= aws["max_workers"]
    assert "--num-cpus=0 --num-gpus=0" in local["head_start_ray_commands"][-1]


def test_spot_and_on_demand_workers_differ_in_the_market_alone() -> None:
    types = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text(encoding="utf-8"))["available_node_types"]
    spot, on_demand = types["gpu_spot"], types["gpu_on_demand"]
    assert spot["node_config"].pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert {**spot, "max_workers": 0} == {**on_demand, "max_workers": 0}
    assert spot["min_workers"] == 0


def test_the_cluster_runs_the_pinned_ray(cluster: dict[str, Any]) -> None:
    kinds = cluster["available_node_types"].values()
    images = [cluster["docker"].get("image"), *(kind["docker"]["worker_image"] for kind in kinds if "docker" in kind)]
    for image in filter(None, images):
        assert re.fullmatch(rf"rayproject/ray:{re.escape(_ray_pin())}-py311(-gpu)?", image)
    for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        commands = " ".join(cluster[key])
        assert "nightly" not in commands
        assert ".whl" not in commands
        assert "constraints.txt" in commands


def test_the_cluster_is_closed(cluster: dict[str, Any]) -> None:
    starts = [cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]]
    for commands in starts:
        start = [command for command in commands if "ray start" in command]
        assert len(start) == 1
        assert "RAY_AUTH_MODE=token" in start[0]
    head = " ".join(starts[0])
    assert "--dashboard-host=127.0.0.1" in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert {"~/.ray/auth_token", "~/trialgate.env"} <= set(cluster["file_mounts"])
    assert "chmod 600 ~/.ray/auth_token ~/trialgate.env" in " ".join(cluster["setup_commands"])


def test_all_that_runs_on_the_cluster_has_the_users_environment(cluster: dict[str, Any]) -> None:
    """Ray's processes hand on the environment that they were started with."""
    for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        (start,) = [command for command in commands if "ray start" in command]
        assert start.index(". ~/trialgate.env") < start.index("ray start")
    ignored = (REPOSITORY / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert "cluster.env" in ignored
    assert "cluster.env" in (REPOSITORY / ".rayignore").read_text(encoding="utf-8").splitlines()


def test_the_fast_path_is_the_default_and_the_user_has_the_last_word(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"]["~/trialgate"] == "."
    for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        (start,) = [command for command in commands if "ray start" in command]
        assert "set -a; . ~/trialgate/configs/fast_path.env; . ~/trialgate.env; set +a;" in start


def test_a_shell_reads_the_fast_path_as_we_do() -> None:
    shell = "set -a; . configs/fast_path.env; exec env"
    lines = subprocess.run(
        ["sh", "-c", shell], cwd=REPOSITORY, env={}, capture_output=True, text=True, check=True
    ).stdout
    found = dict(line.split("=", 1) for line in lines.splitlines() if line.startswith("RAY_SERVE_"))
    assert found == fast_path_variables()


def test_no_secret_is_written_down() -> None:
    for name in FILES:
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        comments_off = "\n".join(line.partition("#")[0] for line in text.splitlines())
        assert not SECRETS.search(comments_off)
