"""An API server that does what a test says, and an environment with no other cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.launchers.kubernetes import cluster as kubernetes_cluster
from flows.launchers.kubernetes import follow as kubernetes_follow
from flows.launchers.kubernetes import state as kubernetes_state
from tests.flows.launchers.kubernetes.api import KubernetesApi, Step


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster but the test's, credentials that belong nowhere, and little patience."""
    for name in ("KUBERNETES_SERVICE_HOST", "TOMOGRAPH_POD_NAME", "TOMOGRAPH_POD_UID", "TOMOGRAPH_POD_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "PREFECT_API_KEY", "AZURE_STORAGE_KEY"):
        monkeypatch.setenv(name, f"secret-of-{name}")
    monkeypatch.setattr(kubernetes_cluster, "FIRST_PATIENCE", 1.0)
    monkeypatch.setattr(kubernetes_cluster, "LONGEST_WAIT", 0.2)
    monkeypatch.setattr(kubernetes_follow, "CHANGE_SECONDS", 1.0)
    monkeypatch.setattr(kubernetes_follow, "LOG_PATIENCE", 1.0)
    monkeypatch.setattr(kubernetes_state, "IMAGE_PATIENCE", 0.5)
    monkeypatch.setattr(kubernetes_state, "CONFIGURATION_PATIENCE", 0.5)


@pytest.fixture
def cluster(
    environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., KubernetesApi]]:
    """Starts an API whose pods do what the given steps say, and names it in the kubeconfig."""
    with contextlib.ExitStack() as stack:

        def start(*steps: Step, **more: Any) -> KubernetesApi:
            api = stack.enter_context(KubernetesApi(steps, **more).running())
            monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path / "kubeconfig")))
            monkeypatch.setattr(
                "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig")
            )
            started.append(api)
            return api

        started: list[KubernetesApi] = []
        yield start
        for api in started:  # in every test: no credential is in any request
            for request in api.requests:
                assert "secret-of-" not in repr(request)
