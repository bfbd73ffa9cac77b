"""What the check of cluster files refuses, and where it says that it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.cluster_check import check, main
from configs.exit_codes import ExitCode, UsageError

REPOSITORY = Path(__file__).resolve().parents[3]
AWS, LOCAL = "cluster.yaml", "configs/cluster-local.yaml"


@pytest.mark.parametrize("name", [AWS, LOCAL])
def test_what_we_ship_is_valid(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = REPOSITORY / name
    assert main([str(path)]) == ExitCode.OK
    assert capsys.readouterr().out == f"{path}: valid\n"


@pytest.mark.parametrize(
    ("name", "right", "wrong", "told"),
    [
        (AWS, "upscaling_speed:", "upscalling_speed:", "upscalling_speed: unknown key; did you mean upscaling_speed?"),
        (AWS, "  region:", "  regoin:", "provider.regoin: unknown key; did you mean region?"),
        (AWS, "  cache_stopped_nodes:", "  cached_nodes:", "provider.cached_nodes: unknown key; did you mean cache_st"),
        (LOCAL, "  head_ip:", "  head_ipp:", "provider.head_ipp: unknown key; did you mean head_ip?"),
        (AWS, "  ssh_user:", "  ssh_usr:", "auth.ssh_usr: unknown key; did you mean ssh_user?"),
        (AWS, "  pull_before_run:", "  pull_before:", "docker.pull_before: unknown key; did you mean pull_before_run?"),
        (
            AWS,
            "      worker_image:",
            "      worker_imge:",
            "docker.worker_imge: unknown key; did you mean worker_image?",
        ),
        (AWS, "    min_workers: 0", "    min_worker: 0", "head.min_worker: unknown key; did you mean min_workers?"),
        (
            AWS,
            "      InstanceType:",
            "      InstanceTyp:",
            "head.node_config.InstanceTyp: unknown key; did you mean Ins",
        ),
        (AWS, "{MarketType: spot}", "{MarktType: spot}", "InstanceMarketOptions.MarktType: unknown key; did you mean "),
        (AWS, "VolumeSize: 100", "VolumeSize: '100'", "Mappings[0].Ebs.VolumeSize: '100' is a str; expected a int"),
        (AWS, "VolumeSize: 100", "VolumSize: 100", "BlockDeviceMappings[0].Ebs.VolumSize: unknown key; did you mean V"),
        (AWS, "max_workers: 12", "max_workers: many", "max_workers: 'many' is not of type 'integer'"),
        (AWS, "ray:2.60.0-py311\n", "ray\n", "docker.image: rayproject/ray is not pinned"),
        (AWS, "ray:2.60.0-py311\n", "ray:nightly-py311\n", "docker.image: rayproject/ray:nightly-py311 is not pinned"),
        (AWS, "idle_timeout_minutes: 10", "max_workers: 3", "max_workers: stands there twice, first in line"),
        (
            LOCAL,
            "auth:",
            "available_node_types: {}\nauth:",
            "available_node_types: the provider local has no node types",
        ),
        (LOCAL, "  type: local", "  type: lokal", "provider.type is 'lokal'; this check knows aws, local"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_the_fix(
    name: str, right: str, wrong: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (REPOSITORY / name).read_text()
    assert right in text
    file = tmp_path / "cluster.yaml"
    file.write_text(text.replace(right, wrong, 1))
    key = wrong.strip().splitlines()[0]
    line = next(
        number for number, row in enumerate(file.read_text().splitlines(), 1) if key in row and row.strip()[0] != "#"
    )
    assert main([str(file)]) == ExitCode.USAGE
    lines = [row for row in capsys.readouterr().err.splitlines() if told in row]
    assert lines, check(file)
    assert lines[0].startswith(f"{file}:{line}: ")


def test_what_is_no_cluster_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cluster.yaml"
    assert main([str(file)]) == ExitCode.USAGE
    assert "cannot be read as YAML" in capsys.readouterr().err
    file.write_text("applications: []")
    with pytest.raises(UsageError, match="expected a mapping with the key provider"):
        check(file)


def test_what_ray_refuses_for_other_reasons_is_told_in_its_words(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text((REPOSITORY / AWS).read_text().replace("head_node_type: head", "head_node_type: chief"))
    assert [problem.message for problem in check(file)] == [
        "Ray refuses it: `head_node_type` must be one of `available_node_types`."
    ]
