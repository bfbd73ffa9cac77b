"""cluster.yaml: valid, pinned, nothing open, nothing secret. The image and the rest: tests/unit/ship."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.mode import fast_path_variables

REPOSITORY = Path(__file__).resolve().parents[3]

# Ray's own schema lets any key through under `provider`; these are the ones its AWS provider reads.
AWS_PROVIDER_KEYS = {
    "type",
    "region",
    "availability_zone",
    "cache_stopped_nodes",
    "use_internal_ips",
    "security_group",
    "cloudwatch",
    "aws_credentials",
    "disable_node_updaters",
}
SECRETS = re.compile(r"AKIA[0-9A-Z]{16}|-----BEGIN|(?i:password|secret|api_?key)\s*[:=]\s*\S")


def _ray_pin() -> str:
    match = re.search(r"^ray==(\S+)$", (REPOSITORY / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert match
    return match[1]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """cluster.yaml as Ray completes it, after Ray's own offline validation."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((REPOSITORY / "cluster.yaml").read_text(encoding="utf-8")))
    validate_config(config)
    return config


def test_ray_accepts_the_cluster_and_so_do_we(cluster: dict[str, Any]) -> None:
    assert set(cluster["provider"]) <= AWS_PROVIDER_KEYS
    assert cluster["available_node_types"][cluster["head_node_type"]]["resources"]["CPU"] == 0, "the head does no work"
    assert sum(kind["max_workers"] for kind in cluster["available_node_types"].values()) <= cluster["max_workers"]


def test_ray_refuses_a_misspelt_key() -> None:
    """The validation that the test above relies on does look."""
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    values = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text(encoding="utf-8"))
    values["available_node_types"]["head"]["min_worker"] = 0
    with pytest.raises(jsonschema.ValidationError, match="min_worker"):
        validate_config(prepare_config(values))


def test_the_cluster_runs_the_pinned_ray(cluster: dict[str, Any]) -> None:
    kinds = cluster["available_node_types"].values()
    images = [cluster["docker"]["image"], *(kind["docker"]["worker_image"] for kind in kinds if "docker" in kind)]
    for image in images:
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
    assert "~/.ray/auth_token" in cluster["file_mounts"]


def test_what_we_ship_has_the_fast_path(cluster: dict[str, Any]) -> None:
    """Ray's processes read it from their environment, so whatever starts Ray must set it."""
    for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        (start,) = [command for command in commands if "ray start" in command]
        assert start.index(". ~/trialgate/configs/fast_path.env") < start.index("ray start")


def test_a_shell_reads_the_fast_path_as_we_do() -> None:
    shell = "set -a; . configs/fast_path.env; exec env"
    lines = subprocess.run(
        ["sh", "-c", shell], cwd=REPOSITORY, env={}, capture_output=True, text=True, check=True
    ).stdout
    found = dict(line.split("=", 1) for line in lines.splitlines() if line.startswith("RAY_SERVE_"))
    assert found == fast_path_variables()


def test_no_secret_is_written_down() -> None:
    text = (REPOSITORY / "cluster.yaml").read_text(encoding="utf-8")
    comments_off = "\n".join(line.partition("#")[0] for line in text.splitlines())
    assert not SECRETS.search(comments_off)
