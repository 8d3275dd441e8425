"""The Kubernetes manifests as kubectl renders them: valid, complete, without privileges, and with no right too many."""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from flows.launchers.kubernetes.job import job_body
from flows.launchers.settings import ContainerSettings, KubernetesSettings
from tests.deploy.api_calls import calls_of_the_launcher
from tests.deploy.manifests import (
    CLUSTER_WIDE,
    MANIFESTS,
    OVERLAYS,
    REPOSITORY,
    SENTINEL,
    Object,
    containers,
    kubectl,
    named,
    rendered,
    scalars,
    templates,
    with_credentials,
)
from tests.deploy.network_policies import lets_through, selects
from tests.deploy.pod_security import violations
from tests.flows.launchers.kubernetes.test_job import IMAGE, ON_THE_CPU, lease
from tests.requirements import need

NAMESPACE = "tomograph"
VERSIONS = ("1.29", "1.34", "1.37")
VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
POOL = yaml.safe_load((REPOSITORY / "deploy" / "pools" / "tomograph-kubernetes.yaml").read_text())
FLOW_POD = {"prefect.io/flow-run-id": "5f1c2f9e-2f53-4d4e-8d0e-0c1a5b0f7a11"}
"""Labels of a pod that prefect-kubernetes makes."""
PINNED = re.compile(r"[a-z0-9][a-z0-9./:-]*(:[a-z0-9][\w.-]*|@sha256:[0-9a-f]{64})")
SERVED = {"Deployment", "StatefulSet"}

# What prefect-kubernetes asks the cluster for (its worker.py, observer.py and kopf's watches), in one namespace.
WORKER_CALLS = {
    ("batch", "jobs", "create"),
    ("batch", "jobs", "delete"),
    ("batch", "jobs", "get"),
    ("batch", "jobs", "list"),
    ("batch", "jobs", "watch"),
    ("", "pods", "get"),
    ("", "pods", "list"),
    ("", "pods", "watch"),
    ("", "pods/log", "get"),
}


@pytest.fixture(scope="module")
def program() -> str:
    found = kubectl()
    need("kubectl", found is not None, "a kubectl (Debian: kubernetes-client), or KUBECTL names one")
    assert found
    return found


@pytest.fixture(scope="module", params=OVERLAYS)
def objects(request: pytest.FixtureRequest, program: str, tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    """The objects of the base and of each overlay."""
    return rendered(program, with_credentials(tmp_path_factory.mktemp("tree")) / request.param)


@pytest.fixture(scope="module")
def local(program: str, tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    """The objects of the overlay with an object store."""
    return rendered(program, with_credentials(tmp_path_factory.mktemp("tree")) / "overlays" / "local")


def shard_job() -> Object:
    """A shard's Job, with the launcher's defaults."""
    settings = (ContainerSettings(), KubernetesSettings())
    return job_body(ON_THE_CPU["run"], lease(gpus=False), IMAGE, *settings, name="shard", namespace=NAMESPACE)


def pod_labels(objects: list[Object]) -> dict[str, dict[str, str]]:
    """Labels of every pod that runs in the namespace, by what it is."""
    ours = {name.partition("/")[2]: one["metadata"]["labels"] for name, one in templates(objects).items()}
    return ours | {"flow": FLOW_POD, "shard": shard_job()["spec"]["template"]["metadata"]["labels"]}


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_accepts_every_object(objects: list[Object], version: str) -> None:
    for one in objects:
        kubernetes_validate.validate(one, version, strict=True)


def test_an_unknown_field_is_refused(objects: list[Object]) -> None:
    wrong = copy.deepcopy(named(objects, "Deployment")["server"])
    wrong["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenesProbe"):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_everything_is_in_one_namespace(objects: list[Object]) -> None:
    assert list(named(objects, "Namespace")) == [NAMESPACE]
    assert {one["metadata"].get("namespace") for one in objects if one["kind"] not in CLUSTER_WIDE} == {NAMESPACE}
    names = [(one["kind"], one["metadata"]["name"]) for one in objects]
    assert len(names) == len(set(names))


def test_without_its_credentials_nothing_is_rendered(program: str, tmp_path: Path) -> None:
    tree = with_credentials(tmp_path)
    (tree / "base" / "credentials.env").unlink()
    with pytest.raises(AssertionError, match="credentials"):
        rendered(program, tree / "base")


def test_git_ignores_credentials() -> None:
    ignored = (MANIFESTS / "base" / ".gitignore").read_text().split()
    examples = {path.with_suffix("").name for path in MANIFESTS.rglob("*.env.example")}
    assert examples == set(ignored)
    assert all(path.parent.name == "base" for path in MANIFESTS.rglob("*.env.example"))


def references(pod: Object) -> set[tuple[str, str, str | None]]:
    """(kind, name, key) of what a pod needs to be there."""
    found: set[tuple[str, str, str | None]] = {("ServiceAccount", pod.get("serviceAccountName", "default"), None)}
    for volume in pod.get("volumes", []):
        for source, kind, field in (("configMap", "ConfigMap", "name"), ("secret", "Secret", "secretName")):
            if source in volume:
                found.add((kind, volume[source][field], None))
        if claim := volume.get("persistentVolumeClaim"):
            found.add(("PersistentVolumeClaim", claim["claimName"], None))
    for container in containers(pod):
        for one in container.get("envFrom", []):
            found |= {("ConfigMap", one["configMapRef"]["name"], None)} if "configMapRef" in one else set()
            found |= {("Secret", one["secretRef"]["name"], None)} if "secretRef" in one else set()
        for value in (one.get("valueFrom", {}) for one in container.get("env", [])):
            for source, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
                found |= {(kind, value[source]["name"], value[source]["key"])} if source in value else set()
    return found


def test_what_pods_name_exists(objects: list[Object]) -> None:
    pods = {name: one["spec"] for name, one in templates(objects).items()}
    pods["shard"] = shard_job()["spec"]["template"]["spec"]
    pods["flow"] = flow_pod()
    for name, pod in pods.items():
        for kind, wanted, key in references(pod):
            there = named(objects, kind) | ({"default": {}} if kind == "ServiceAccount" else {})
            assert wanted in there, f"{name}: {kind} {wanted}"
            assert key is None or key in there[wanted]["data"], f"{name}: {kind} {wanted}: {key}"


def test_what_is_mounted_is_a_volume(objects: list[Object]) -> None:
    for one in (one for one in objects if one["kind"] in SERVED | {"Job"}):
        pod = one["spec"]["template"]["spec"]
        claims = [claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", [])]
        mounted = {mount["name"] for container in containers(pod) for mount in container.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod.get("volumes", [])} | set(claims)


def flow_pod() -> Object:
    """The pod of a flow as the work pool describes it, its variables at their defaults."""
    template = POOL["base_job_template"]
    defaults = {name: one.get("default") for name, one in template["variables"]["properties"].items()}
    pod = copy.deepcopy(template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"])
    pod["serviceAccountName"] = defaults["service_account_name"]
    assert defaults["namespace"] == NAMESPACE
    return pod


def test_selectors_find_their_pods(objects: list[Object]) -> None:
    labels = pod_labels(objects)
    for one in (one for one in objects if one["kind"] in SERVED):
        template = one["spec"]["template"]
        assert selects(one["spec"]["selector"], template["metadata"]["labels"])
        assert [name for name, own in labels.items() if selects(one["spec"]["selector"], own)] == [
            one["metadata"]["name"]
        ]
    for name, service in named(objects, "Service").items():
        chosen = {"matchLabels": service["spec"]["selector"]}
        assert [pod for pod, own in labels.items() if selects(chosen, own)] == [name]
        [template] = [one for key, one in templates(objects).items() if key.endswith(f"/{name}")]
        ports = [port for container in template["spec"]["containers"] for port in container["ports"]]
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            assert any(target in (one["name"], one["containerPort"]) for one in ports), f"{name}: {target}"
    for name, one in named(objects, "StatefulSet").items():
        assert one["spec"]["serviceName"] in named(objects, "Service"), name


def test_policies_are_about_pods_that_exist(objects: list[Object]) -> None:
    labels = pod_labels(objects).values()
    for name, policy in named(objects, "NetworkPolicy").items():
        spec = policy["spec"]
        peers = [peer for rule in spec.get("ingress", []) for peer in rule.get("from", [])]
        peers += [peer for rule in spec.get("egress", []) for peer in rule.get("to", [])]
        for selector in [spec["podSelector"], *(peer["podSelector"] for peer in peers if "podSelector" in peer)]:
            assert any(selects(selector, own) for own in labels), f"{name}: {selector}"


@pytest.mark.parametrize(
    ("source", "target", "port", "expected"),
    [
        ("worker", "server", 4200, True),
        ("deploy", "server", 4200, True),
        ("flow", "server", 4200, True),
        ("shard", "server", 4200, False),
        ("database", "server", 4200, False),
        ("server", "database", 5432, True),
        ("worker", "database", 5432, False),
        ("flow", "database", 5432, False),
        ("shard", "database", 5432, False),
        ("flow", "shard", 8080, False),
        ("flow", "object-store", 8333, True),
        ("shard", "object-store", 8333, True),
        ("shard", "object-store", 8888, False),
        ("flow", "object-store", 8888, False),
        ("server", "object-store", 8333, False),
    ],
)
def test_who_may_talk_to_whom(local: list[Object], source: str, target: str, port: int, expected: bool) -> None:
    labels = pod_labels(local)
    policies = list(named(local, "NetworkPolicy").values())
    assert lets_through(policies, labels[source], labels[target], port) is expected


def test_shards_reach_what_is_outside_by_https_alone(local: list[Object]) -> None:
    """With a selector of nobody here as the target: what holds is the shard's way out."""
    shard, policies = pod_labels(local)["shard"], list(named(local, "NetworkPolicy").values())
    way_out = [one for one in policies if "Egress" in one["spec"]["policyTypes"]]
    assert lets_through([one for one in way_out if one["metadata"]["name"] != "nobody-in"], shard, {}, 443)
    assert not lets_through(way_out, shard, {}, 4200)
    assert not lets_through(way_out, shard, {}, 80)


def test_the_namespace_takes_pods_without_privileges_alone(objects: list[Object]) -> None:
    labels = named(objects, "Namespace")[NAMESPACE]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    pods = {name: one["spec"] for name, one in templates(objects).items()}
    for name, pod in (pods | {"shard": shard_job()["spec"]["template"]["spec"], "flow": flow_pod()}).items():
        assert violations(pod) == [], name


BREACHES: dict[str, Callable[[Object], Any]] = {
    "server: allowPrivilegeEscalation": lambda pod: pod["containers"][0]["securityContext"].pop(
        "allowPrivilegeEscalation"
    ),
    "server: privileged": lambda pod: pod["containers"][0]["securityContext"].update(privileged=True),
    "server: runAsNonRoot": lambda pod: pod["securityContext"].pop("runAsNonRoot"),
    "server: runAsUser": lambda pod: pod["containers"][0]["securityContext"].update(runAsUser=0),
    "server: seccompProfile": lambda pod: pod["securityContext"].pop("seccompProfile"),
    "server: capabilities.drop": lambda pod: pod["containers"][0]["securityContext"].pop("capabilities"),
    "server: capabilities.add": lambda pod: pod["containers"][0]["securityContext"]["capabilities"].update(
        add=["SYS_ADMIN"]
    ),
    "server: hostPort": lambda pod: pod["containers"][0]["ports"][0].update(hostPort=4200),
    "hostNetwork": lambda pod: pod.update(hostNetwork=True),
    "volume hostPath": lambda pod: pod["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_of_pod_security_is_found(local: list[Object], breach: str) -> None:
    pod = copy.deepcopy(named(local, "Deployment")["server"]["spec"]["template"]["spec"])
    BREACHES[breach](pod)
    assert violations(pod) == [breach]


def test_pods_are_careful(objects: list[Object]) -> None:
    """Nothing is written to an image, a pod says what it takes, and one that goes on is asked whether it lives."""
    for name, template in templates(objects).items():
        assert template["spec"]["enableServiceLinks"] is False, name
        for container in containers(template["spec"]):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
            assert "memory" in container["resources"]["limits"], name
        if name.partition("/")[0] in SERVED:
            for container in template["spec"]["containers"]:
                assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys(), name


def test_images_are_pinned_and_named_once(objects: list[Object]) -> None:
    config = named(objects, "ConfigMap")["tomograph-config"]["data"]
    images = {container["image"] for one in templates(objects).values() for container in containers(one["spec"])}
    assert config["TOMOGRAPH_FLOWS_IMAGE"] in images
    assert len([image for image in images if "tomograph" in image]) == 1
    for image in images:
        assert PINNED.fullmatch(image), image
        assert not image.endswith(":latest")
    for environment in ("TORCH", "VLLM"):
        assert re.fullmatch(r"\S+@sha256:[0-9a-f]{64}", config[f"TOMOGRAPH_{environment}_IMAGE"])
    assert config["TOMOGRAPH_FLOWS_IMAGE"].endswith(f":{VERSION}")


def test_credentials_are_in_secrets_alone(objects: list[Object]) -> None:
    secret = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|AUTH_STRING")
    for one in objects:
        if one["kind"] != "Secret":
            assert not any(SENTINEL in text for text in scalars(one)), one["metadata"]["name"]
    for name, config in named(objects, "ConfigMap").items():
        assert not any(secret.search(key) for key in config["data"]), name
    for name, template in templates(objects).items():
        for container in containers(template["spec"]):
            for variable in container.get("env", []):
                assert "value" not in variable or not secret.search(variable["name"]), f"{name}: {variable['name']}"


def test_shards_never_see_the_databases_password(objects: list[Object]) -> None:
    seen = {one["secretRef"]["name"] for one in shard_job()["spec"]["template"]["spec"]["containers"][0]["envFrom"]}
    assert seen == {"tomograph-credentials"}
    assert "POSTGRES_PASSWORD" not in named(objects, "Secret")["tomograph-credentials"]["data"]


def rights(objects: list[Object], account: str) -> set[tuple[str, str, str]]:
    """(API group, resource, verb) that a service account of the namespace may."""
    assert not named(objects, "ClusterRole")
    assert not named(objects, "ClusterRoleBinding")
    found = set()
    for binding in named(objects, "RoleBinding").values():
        subjects = [(one["kind"], one["name"], one["namespace"]) for one in binding["subjects"]]
        if ("ServiceAccount", account, NAMESPACE) in subjects:
            for rule in named(objects, "Role")[binding["roleRef"]["name"]]["rules"]:
                assert rule.keys() == {"apiGroups", "resources", "verbs"}
                found |= {
                    (group, resource, verb)
                    for group in rule["apiGroups"]
                    for resource in rule["resources"]
                    for verb in rule["verbs"]
                }
    return found


def test_flows_have_the_rights_of_the_launchers_calls_and_no_others(objects: list[Object]) -> None:
    assert rights(objects, "tomograph-flows") == calls_of_the_launcher()


def test_the_worker_has_the_rights_it_needs_and_no_others(objects: list[Object]) -> None:
    assert rights(objects, "tomograph-worker") == WORKER_CALLS
    [worker] = named(objects, "Deployment")["worker"]["spec"]["template"]["spec"]["containers"]
    [watched] = [one for one in worker["env"] if one["name"].endswith("_OBSERVER_NAMESPACES")]
    assert watched["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.namespace"  # else it watches the whole cluster


@pytest.mark.parametrize("account", ["tomograph-shards", "default"])
def test_shards_have_no_rights(objects: list[Object], account: str) -> None:
    assert rights(objects, account) == set()
    assert named(objects, "ServiceAccount")["tomograph-shards"]["automountServiceAccountToken"] is False


def test_only_who_talks_to_the_cluster_has_a_token(objects: list[Object]) -> None:
    with_token = [name for name, one in templates(objects).items() if one["spec"]["automountServiceAccountToken"]]
    assert with_token == ["Deployment/worker"]
