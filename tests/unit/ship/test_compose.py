"""docker-compose.yml and what it mounts: valid, pinned, closed, and each part finds the others."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from configs.loading import load_settings
from tests.unit.ship.tools import IMAGE, PINNED_BY_DIGEST, REPOSITORY, SECRET_NAME, documents, text, vendored_schema

(COMPOSE,) = documents("docker-compose.yml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
REQUIRED = re.compile(r"\$\{(\w+):\?[^}]+\}")
OPTIONAL = re.compile(r"\$\{(\w+):-([^}]*)\}")


def names_in_example() -> list[str]:
    return re.findall(r"^(\w+)=", text(".env.example"), re.MULTILINE)


def words(service: str) -> list[str]:
    """The service's command, of a shell the words of its script."""
    command: list[str] = SERVICES[service]["command"]
    return command[2].split() if command[:2] == ["sh", "-c"] else command


def environment(service: str) -> dict[str, str]:
    """What the service's processes have, with a word of this test for each secret."""
    values = SERVICES[service]["environment"]
    return {name: OPTIONAL.sub(r"\2", REQUIRED.sub("given", value)) for name, value in values.items()}


def test_it_is_valid() -> None:
    schema = vendored_schema("compose-spec")
    jsonschema.validate(COMPOSE, schema)
    with pytest.raises(jsonschema.ValidationError, match="helthcheck"):
        jsonschema.validate({"services": {"head": {"image": "a", "helthcheck": {}}}}, schema)


def test_the_promised_parts_are_there() -> None:
    assert {"postgres", "storage", "mlflow", "head", "worker", "prometheus", "grafana"} == set(SERVICES)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_pinned_closed_and_watched(service: str) -> None:
    values = SERVICES[service]
    assert values["image"] == IMAGE or PINNED_BY_DIGEST.fullmatch(values["image"])
    for port in values.get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port), f"{service} publishes {port} beyond this machine"
    # The head's is the image's own HEALTHCHECK, which asks the service.
    assert "healthcheck" in values or service == "head"
    assert "network_mode" not in values
    assert not values.get("privileged")
    for other, how in values.get("depends_on", {}).items():
        assert other in SERVICES
        assert how == {"condition": "service_healthy"}


def test_every_secret_comes_from_outside_and_has_its_line_in_the_example() -> None:
    asked: set[str] = set()
    for service, values in SERVICES.items():
        for name, value in values.get("environment", {}).items():
            if SECRET_NAME.search(name) or "API_KEYS" in name:
                assert REQUIRED.fullmatch(value), f"{service}: {name} is written down, or may be empty"
        asked |= set(REQUIRED.findall(json.dumps(values)))
    for secret in COMPOSE["secrets"].values():
        asked.add(secret["environment"])
    assert asked == set(names_in_example())
    assert not re.findall(r"^\w+=.+", text(".env.example"), re.MULTILINE), "an example that works would be used"
    assert ".env" in text(".gitignore").splitlines()
    assert ".env" in text(".rayignore").splitlines()


def test_the_examples_own_command_fills_it_in(tmp_path: Path) -> None:
    lines = text(".env.example").splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("#   (umask"))
    command = "\n".join(line.removeprefix("#   ") for line in lines[begin : begin + 2])
    (tmp_path / ".env.example").write_text(text(".env.example"), encoding="utf-8")
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    filled = dict(re.findall(r"^(\w+)=([0-9a-f]{64})$", (tmp_path / ".env").read_text(encoding="utf-8"), re.MULTILINE))
    assert list(filled) == names_in_example()
    assert len(set(filled.values())) == len(filled)
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0


def test_volumes_are_declared_and_mounted_files_exist() -> None:
    mounted = [volume.split(":") for values in SERVICES.values() for volume in values.get("volumes", [])]
    files = [source for source, *_ in mounted if source.startswith("./")]
    assert files
    for file in files:
        assert (REPOSITORY / file).is_file()
    assert all(volume[-1] == "ro" for volume in mounted if volume[0].startswith("./"))
    assert {source for source, *_ in mounted if not source.startswith("./")} == set(COMPOSE["volumes"])


def test_ray_and_mlflow_know_every_option() -> None:
    import mlflow.cli
    from ray.scripts.scripts import start

    for service in ("head", "worker"):
        line = words(service)
        assert line.index("configs/fast_path.env") < line.index("ray")
        after = line[line.index("ray") + 2 :]
        _known(after[: after.index("&&")] if "&&" in after else after, start)
    _known(words("mlflow")[2:], mlflow.cli.server)


def _known(arguments: list[str], command: Any) -> None:
    options = {name for parameter in command.params for name in parameter.opts}
    for argument in arguments:
        name, _, _ = argument.partition("=")
        assert name in options, f"{command.name} has no option {name}"


def test_mlflow_is_reached_under_its_names_only() -> None:
    from mlflow.server.security_utils import is_allowed_host_header

    (allowed,) = [word.partition("=")[2].split(",") for word in words("mlflow") if word.startswith("--allowed-hosts")]
    tracking = environment("head")["MLFLOW_TRACKING_URI"].removeprefix("http://")
    for host in (tracking, "127.0.0.1:5000", "localhost:5000"):
        assert is_allowed_host_header(allowed, host)
    assert not is_allowed_host_header(allowed, "evil.example:5000")


@pytest.mark.parametrize("service", ["head", "worker"])
def test_the_settings_take_the_environment(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(service).items():
        monkeypatch.setenv(name, value)
    settings = load_settings("quickstart.yaml", on_cluster=True)
    assert settings.tracking.uri == "http://mlflow:5000"
    assert settings.search.storage == "s3://searches"
    assert settings.tracking.model_name == "quickstart-sentiment"
    assert settings.home is not None
    assert f"home:{settings.home}" in SERVICES["head"]["volumes"]


def test_buckets_are_the_folders_of_the_storage() -> None:
    buckets = {volume.rpartition("/")[2] for volume in SERVICES["storage"]["volumes"]}
    used = set(re.findall(r"s3://(\w+)", text("docker-compose.yml")))
    assert used == buckets


def test_every_node_has_the_same_access() -> None:
    head, worker = environment("head"), environment("worker")
    assert head.pop("RAY_ADDRESS") == "auto"
    assert head == worker
    assert head["RAY_AUTH_MODE"] == "token"


def test_prometheus_scrapes_what_is_there() -> None:
    (config,) = documents("configs/prometheus.yaml")
    assert set(config) == {"global", "rule_files", "scrape_configs"}
    mounts = {volume.split(":")[1] for volume in SERVICES["prometheus"]["volumes"]}
    for rules in config["rule_files"]:
        assert (REPOSITORY / "configs" / rules).is_file()
        assert f"/etc/prometheus/{rules}" in mounts
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    for name, job in jobs.items():
        assert set(job) <= {"job_name", "authorization", "static_configs", "dns_sd_configs"}, name
        for targets in job["static_configs"]:
            assert all(target.split(":")[0] in SERVICES for target in targets["targets"])
        for lookup in job.get("dns_sd_configs", []):
            assert set(lookup["names"]) <= set(SERVICES)
    assert jobs["trialgate"]["static_configs"] == [{"targets": ["head:8000"]}]
    (secret,) = SERVICES["prometheus"]["secrets"]
    assert jobs["trialgate"]["authorization"] == {"credentials_file": f"/run/secrets/{secret}"}
    ray = jobs["ray"]["static_configs"][0]["targets"][0].split(":")[1]
    for service in ("head", "worker"):
        assert f"--metrics-export-port={ray}" in words(service)


def test_promtool_agrees(tmp_path: Path) -> None:
    import shutil

    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    for name in ("prometheus.yaml", "prometheus-alerts.yaml"):
        (tmp_path / name).write_text(text(f"configs/{name}"), encoding="utf-8")
    command = [promtool, "check", "config", "--syntax-only", str(tmp_path / "prometheus.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    (sources,) = documents("configs/grafana/datasources.yaml")
    (source,) = sources["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "9090" in SERVICES["prometheus"]["ports"][0]
    dashboard = json.loads(text("configs/grafana-dashboard.json"))
    (chosen,) = [variable for variable in dashboard["templating"]["list"] if variable["type"] == "datasource"]
    assert (chosen["query"], source["isDefault"]) == (source["type"], True)
    (providers,) = documents("configs/grafana/dashboards.yaml")
    (provider,) = providers["providers"]
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    assert mounts["./configs/grafana-dashboard.json"].startswith(provider["options"]["path"] + "/")
    assert mounts["./configs/grafana/datasources.yaml"].startswith("/etc/grafana/provisioning/datasources/")
    assert mounts["./configs/grafana/dashboards.yaml"].startswith("/etc/grafana/provisioning/dashboards/")
