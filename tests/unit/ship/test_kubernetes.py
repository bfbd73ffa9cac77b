"""configs/kubernetes: what Kubernetes and KubeRay check, and what must agree between these files and with the rest."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from packaging.version import Version
from ray.serve.schema import ServeDeploySchema

from configs.loading import load_settings
from serve_app.mode import fast_path_variables
from tests.unit.ship.tools import IMAGE, REPOSITORY, documents, module, text

FOLDER = "configs/kubernetes"
(CLUSTER,), (JOB,), (SERVICE,) = (documents(f"{FOLDER}/ray-{kind}.yaml") for kind in ("cluster", "job", "service"))
(POLICY,) = documents(f"{FOLDER}/network-policy.yaml")
SETTINGS = {document["metadata"]["name"]: document for document in documents(f"{FOLDER}/settings.yaml")}
CLUSTERS: dict[str, dict[str, Any]] = {
    "RayCluster": CLUSTER["spec"],
    "RayJob": JOB["spec"]["rayClusterSpec"],
    "RayService": SERVICE["spec"]["rayClusterConfig"],
}
# The fields of KubeRay's Go types (ray-operator/apis/ray/v1) that are used here; the operator's CRDs are no package.
KNOWN = {
    "cluster": {"rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec",
                "workerGroupSpecs"},
    "authOptions": {"mode", "secretName"},
    "autoscalerOptions": {"idleTimeoutSeconds", "upscalingMode", "resources", "securityContext"},
    "headGroupSpec": {"rayStartParams", "template"},
    "workerGroupSpecs": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
    "RayJob": {"entrypoint", "submissionMode", "backoffLimit", "activeDeadlineSeconds", "shutdownAfterJobFinishes",
               "ttlSecondsAfterFinished", "submitterPodTemplate", "rayClusterSpec", "runtimeEnvYAML"},
    "RayService": {"serveConfigV2", "rayClusterConfig"},
}  # fmt: skip
TOKEN = {"name": "trialgate-ray", "key": "auth_token"}  # KubeRay reads this key


def pods(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, pod template) of every pod of Ray that ``kind`` makes."""
    yield "head", CLUSTERS[kind]["headGroupSpec"]["template"]
    for group in CLUSTERS[kind]["workerGroupSpecs"]:
        yield group["groupName"], group["template"]


ALL_PODS = [(kind, name, pod) for kind in CLUSTERS for name, pod in pods(kind)]
SUBMITTER = JOB["spec"]["submitterPodTemplate"]
each_pod = pytest.mark.parametrize(("kind", "name", "pod"), ALL_PODS, ids=[f"{k}-{n}" for k, n, _ in ALL_PODS])


def container(pod: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod["spec"]["containers"]
    return dict(found)


def environment(pod: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container(pod)["env"]}


def test_kubernetes_takes_every_object_and_pod() -> None:
    module("kubernetes_validate")
    import kubernetes_validate

    for document in [POLICY, *SETTINGS.values()]:
        kubernetes_validate.validate(document, "1.34", strict=True)
    for template in [pod for _, _, pod in ALL_PODS] + [SUBMITTER]:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", **template["metadata"]},
               "spec": template["spec"]}  # fmt: skip
        kubernetes_validate.validate(pod, "1.34", strict=True)
    spoilt = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"contaners": []}}
    with pytest.raises(kubernetes_validate.ValidationError, match="contaners"):
        kubernetes_validate.validate(spoilt, "1.34", strict=True)


@pytest.mark.parametrize("kind", CLUSTERS)
def test_kuberay_knows_every_field(kind: str) -> None:
    (document,) = [found for found in (CLUSTER, JOB, SERVICE) if found["kind"] == kind]
    assert document["apiVersion"] == "ray.io/v1"
    assert set(document["spec"]) <= KNOWN.get(kind, KNOWN["cluster"])
    cluster = CLUSTERS[kind]
    assert set(cluster) <= KNOWN["cluster"]
    for field in ("authOptions", "autoscalerOptions", "headGroupSpec"):
        assert set(cluster[field]) <= KNOWN[field]
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= KNOWN["workerGroupSpecs"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group["minReplicas"] < group["maxReplicas"], "there is room to scale"
    assert cluster["enableInTreeAutoscaling"] is True
    # Numbers and booleans here are strings for `ray start`.
    assert all(isinstance(value, str) for value in cluster["headGroupSpec"]["rayStartParams"].values())


@pytest.mark.parametrize("kind", CLUSTERS)
def test_ray_is_the_pinned_one_and_knows_its_parameters(kind: str) -> None:
    from ray.scripts.scripts import start

    pin = re.search(r"^ray==(\S+)$", text("constraints.txt"), re.MULTILINE)
    assert pin
    assert CLUSTERS[kind]["rayVersion"] == pin[1]
    assert f"rayproject/ray:{pin[1]}-" in text("cluster.yaml")
    assert Version(pin[1]) >= Version("2.53"), "the agent's /api/healthz and authOptions need it"
    options = {name for parameter in start.params for name in parameter.opts}
    groups = [CLUSTERS[kind]["headGroupSpec"], *CLUSTERS[kind]["workerGroupSpecs"]]
    assert {f"--{name}" for group in groups for name in group["rayStartParams"]} <= options
    assert CLUSTERS[kind]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "the head does no work"


@each_pod
def test_a_pod_runs_our_image_closed_and_bounded(kind: str, name: str, pod: dict[str, Any]) -> None:
    ray = container(pod)
    assert ray["image"] == (f"{IMAGE}-cuda" if name == "gpu" else IMAGE)
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["securityContext"]["runAsUser"] == 1000, "the image's user"
    assert ray["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    requests, limits = ray["resources"]["requests"], ray["resources"]["limits"]
    assert requests["memory"] == limits["memory"], "Ray kills by the limit, and the kernel must not before it"
    if name != "head":
        assert requests == limits, "Ray counts the limit"
    assert ("nvidia.com/gpu" in limits) == (name == "gpu")


@each_pod
def test_a_pod_has_the_token_the_fast_path_and_the_settings(kind: str, name: str, pod: dict[str, Any]) -> None:
    values = environment(pod)
    assert values["RAY_AUTH_MODE"] == "token"
    assert values["RAY_AUTH_TOKEN"] == {"secretKeyRef": TOKEN}
    assert CLUSTERS[kind]["authOptions"] == {"mode": "token", "secretName": TOKEN["name"]}
    sources = container(pod)["envFrom"]
    assert {source["configMapRef"]["name"] for source in sources if "configMapRef" in source} == set(SETTINGS)


def test_the_fast_path_is_the_one_of_the_environment_file() -> None:
    assert SETTINGS["trialgate-fast-path"]["data"] == fast_path_variables()


@each_pod
def test_probes_ask_what_answers_without_a_token(kind: str, name: str, pod: dict[str, Any]) -> None:
    """KubeRay's own probes need wget, which the image has not."""
    from ray.dashboard.http_server_agent import PUBLIC_EXACT_PATHS

    ray = container(pod)
    serves = kind == "RayService" and name != "head"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = ray[probe]["httpGet"]
        if serves and probe == "readinessProbe":
            assert asked == {"path": "/-/healthz", "port": _serve_config()["http_options"]["port"]}
        else:
            assert asked["path"] in PUBLIC_EXACT_PATHS
            assert asked["port"] == 52365, "Ray's default for --dashboard-agent-listen-port"


@pytest.mark.parametrize("kind", CLUSTERS)
def test_ports_are_those_that_ray_is_started_with(kind: str) -> None:
    cluster = CLUSTERS[kind]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        ports = {port["name"]: port["containerPort"] for port in container(group["template"])["ports"]}
        assert ports["metrics"] == int(group["rayStartParams"]["metrics-export-port"])
        assert ("serve" in ports) == (kind == "RayService")
        assert ports.get("serve", 8000) == _serve_config()["http_options"]["port"]


def test_secrets_are_named_and_made_by_the_commands_on_top() -> None:
    for kind in ("cluster", "job", "service"):
        content = text(f"{FOLDER}/ray-{kind}.yaml")
        comments = "\n".join(line for line in content.splitlines() if line.startswith("#"))
        made = set(re.findall(r"create secret generic (\S+) --from-literal=(\w+)=", comments))
        used = set(re.findall(r"secretKeyRef: \{name: (\S+), key: (\w+)\}", content))
        assert made == used
        for file in re.findall(r"configs/kubernetes/\S+\.yaml", comments):
            assert (REPOSITORY / file).is_file()


def _serve_config() -> dict[str, Any]:
    return dict(yaml.safe_load(SERVICE["spec"]["serveConfigV2"]))


def test_the_service_is_deployed_as_in_a_container() -> None:
    ServeDeploySchema.model_validate(_serve_config())
    assert _serve_config() == yaml.safe_load(text("configs/serve_all_interfaces.yaml"))


def test_replicas_fit_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    (group,) = SERVICE["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    values = environment(group["template"]) | SETTINGS["trialgate-settings"]["data"]
    for name, value in values.items():
        if name.startswith(("TRIALGATE_", "MLFLOW_")):
            monkeypatch.setenv(name, value)
    serving = load_settings(_serve_config()["applications"][0]["args"]["config"], on_cluster=True).serving
    cpus = int(container(group["template"])["resources"]["limits"]["cpu"])
    assert serving.cpus_per_replica <= cpus
    assert serving.min_replicas == group["minReplicas"], "one on each worker that is always there"
    assert serving.max_replicas * serving.cpus_per_replica <= group["maxReplicas"] * cpus


def test_the_job_runs_a_command_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    python, _, name, _, config = shlex.split(JOB["spec"]["entrypoint"])
    assert (python, name) == ("python", "ray_jobs.pipeline")
    for variable, value in SETTINGS["trialgate-settings"]["data"].items():
        monkeypatch.setenv(variable, value)
    settings = load_settings(config, on_cluster=True)
    assert settings.search.storage == "s3://BUCKET/searches"
    groups = {group["groupName"]: group for group in JOB["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    assert groups["gpu"]["minReplicas"] > 0, "a search counts the nodes that are there when it starts"
    submitter = container(SUBMITTER)
    assert submitter["image"] == IMAGE


def test_the_job_has_the_shipped_environment_and_the_code_of_its_image() -> None:
    """KubeRay hands it to `ray job submit` in the submitter's pod, which has no checkout to upload."""
    environment = yaml.safe_load(JOB["spec"]["runtimeEnvYAML"])
    assert environment == yaml.safe_load(text("configs/runtime_env.yaml"))
    assert not {"working_dir", "py_modules"} & set(environment)


def test_the_network_is_closed_but_for_what_the_document_names() -> None:
    selector = POLICY["spec"]["podSelector"]["matchLabels"]
    for template in [pod for _, _, pod in ALL_PODS] + [SUBMITTER]:
        assert selector.items() <= template["metadata"]["labels"].items(), "the policy does not see this pod"
    opened: dict[str, set[int]] = {}
    for rule in POLICY["spec"]["ingress"]:
        (peer,) = rule["from"]
        ((by, labels),) = [(key, value["matchLabels"]) for key, value in peer.items()]
        ports = {port["port"] for port in rule.get("ports", [])}
        if not ports:
            assert (by, labels) == ("podSelector", selector), "all ports are for each other alone"
            continue
        opened["/".join(labels.values())] = ports
    assert opened == {"true": {8000}, "kuberay-system": {8000, 8265, 52365}, "monitoring": {8000, 8080, 9101}}
    table = dict(
        re.findall(r"^\| (?:`[^`]+` \()?(\d[\d-]*)\)? \| .* \| ([^|]+) \|$", text("docs/serving.md"), re.MULTILINE)
    )
    assert table == {
        "8000": "your clients, if you open it",
        "30000-31000": "HAProxy of the cluster's nodes",
        "8500": "HAProxy of the cluster's nodes",
        "40000-41000": "nodes of the cluster",
        "8404": "nobody",
        "9101": "your Prometheus",
    }, "docs/serving.md tells of other ports than the policy was made for"
