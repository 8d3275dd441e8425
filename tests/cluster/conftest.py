"""A real Kubernetes cluster, whichever the environment names.

TOMOGRAPH_TEST_CLUSTER        its kubeconfig, whose user may make a namespace
TOMOGRAPH_TEST_CLUSTER_IMAGE  what Dockerfile of this folder makes, by digest
TOMOGRAPH_TEST_CLUSTER_STORE  an empty S3 prefix that the pods reach, with the AWS_ variables of its credentials
"""

from __future__ import annotations

import base64
import os
import uuid
from collections.abc import Iterator

import pytest

from flows.launchers.kubernetes.cluster import Cluster
from tests.requirements import need

CREDENTIALS = "tomograph-credentials"


@pytest.fixture(scope="session")
def namespace() -> Iterator[str]:
    """A namespace of these tests, with the store's credentials in it."""
    kubeconfig = os.environ.get("TOMOGRAPH_TEST_CLUSTER")
    need("cluster", bool(kubeconfig), "name one in TOMOGRAPH_TEST_CLUSTER (tests/cluster/conftest.py)")
    from kubernetes import client, config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", kubeconfig)
        patch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        config.load_kube_config(kubeconfig)
        core, name = client.CoreV1Api(), f"tomograph-test-{uuid.uuid4().hex[:8]}"
        core.create_namespace({"metadata": {"name": name}})
        variables = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
        data = {key: base64.b64encode(value.encode()).decode() for key, value in variables.items()}
        core.create_namespaced_secret(name, {"metadata": {"name": CREDENTIALS}, "data": data})
        yield name
        core.delete_namespace(name)


@pytest.fixture
def cluster(namespace: str) -> Cluster:
    return Cluster.connect(namespace)
