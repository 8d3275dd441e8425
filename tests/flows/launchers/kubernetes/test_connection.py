"""Which cluster is asked, and with what right: kubeconfig, pod, namespace, certificate, refusals."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.launchers.kubernetes import cluster as kubernetes_cluster
from tasks.errors import BadInput, TransientError
from tests.flows.launchers.kubernetes.api import NAMESPACE, TOKEN, KubernetesApi, make_certificate
from tests.flows.launchers.kubernetes.shards import EVENTS, SUCCESS, finish, launcher, own

pytestmark = pytest.mark.usefixtures("environment")


def test_without_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(BadInput, match="there is no cluster") as refused:
        asyncio.run(launcher().sweep())
    assert (refused.value.field, refused.value.value) == ("execution.launcher", "kubernetes")
    assert "KUBECONFIG" in refused.value.remedy


def test_a_cluster_that_does_not_answer(cluster: Callable[..., KubernetesApi]) -> None:
    api = cluster()
    api._server.server_close()
    with pytest.raises(BadInput, match=r"does not answer.*Connection refused") as refused:
        asyncio.run(launcher().sweep())
    assert refused.value.field == "execution.launcher"


@pytest.mark.parametrize(
    ("fault", "settings", "field", "says"),
    [
        ((403, "Forbidden", "cannot create resource jobs"), {}, "execution.kubernetes.namespace", "cannot create"),
        ((401, "Unauthorized", "Unauthorized"), {}, "execution.kubernetes.namespace", "Unauthorized"),
        ((422, "Invalid", "spec.nodeSelector: Invalid value"), {}, "execution.kubernetes", "spec.nodeSelector"),
        (None, {"namespace": "nowhere"}, "execution.kubernetes.namespace", 'namespaces "nowhere" not found'),
        (None, {"cpu": "many"}, "execution.kubernetes.cpu", "is no number of CPUs"),
    ],
)
def test_what_the_api_refuses_is_bad_input(
    cluster: Callable[..., KubernetesApi],
    monkeypatch: pytest.MonkeyPatch,
    fault: tuple[int, str, str] | None,
    settings: dict[str, Any],
    field: str,
    says: str,
) -> None:
    monkeypatch.setattr(kubernetes_cluster, "PATIENCE", 0.5)
    api = cluster(*SUCCESS)
    if fault:
        api.fail("POST", 100, *fault)
    with pytest.raises(BadInput, match=says) as refused:
        finish(launcher(**settings))
    assert refused.value.field == field


def test_namespaces(cluster: Callable[..., KubernetesApi], tmp_path: Path) -> None:
    """The settings', else the kubeconfig's, else default."""
    api = cluster()
    for settings, context, expected in (
        ({"namespace": "mine"}, NAMESPACE, "mine"),
        ({}, NAMESPACE, NAMESPACE),
        ({}, None, "default"),
    ):
        api.kubeconfig(tmp_path / "kubeconfig", context)
        asyncio.run(launcher(**settings).sweep())
        assert api.requests[-1].path == f"/apis/batch/v1/namespaces/{expected}/jobs"


def test_in_a_pod(cluster: Callable[..., KubernetesApi], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service account's token, authority and namespace go before a kubeconfig."""
    from kubernetes.config import incluster_config

    certificate = make_certificate(tmp_path / "ca.crt")
    api = cluster(*SUCCESS, certificate=certificate)
    (tmp_path / "kubeconfig").write_text("not to be read")
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "namespace").write_text(f"{NAMESPACE}\n")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(certificate))
    monkeypatch.setattr(kubernetes_cluster, "OWN_NAMESPACE", tmp_path / "namespace")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api.port))
    events, end = finish()
    assert end.code == 0
    assert own(events) == EVENTS
    assert api.created()["metadata"]["namespace"] == NAMESPACE


def test_something_else_that_answers(cluster: Callable[..., KubernetesApi], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_cluster, "PATIENCE", 0.5)
    cluster().fail("GET", 1000, 200, message="<html>Sign in</html>")
    with pytest.raises(TransientError, match="is no Kubernetes API"):
        asyncio.run(launcher().sweep())


def test_a_certificate_that_nobody_vouches_for(cluster: Callable[..., KubernetesApi], tmp_path: Path) -> None:
    api = cluster(certificate=make_certificate(tmp_path / "certificate.pem"))
    api.certificate = make_certificate(tmp_path / "another.pem")
    api.kubeconfig(tmp_path / "kubeconfig")
    with pytest.raises(BadInput, match="certificate verify failed"):
        asyncio.run(launcher().sweep())
