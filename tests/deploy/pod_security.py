"""Kubernetes' pod security standard "restricted", as far as a pod of ours could break it."""

from __future__ import annotations

from typing import Any

from tests.deploy.manifests import containers

Object = dict[str, Any]

HOST = ("hostNetwork", "hostPID", "hostIPC")
VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
PROFILES = ("RuntimeDefault", "Localhost")


def violations(pod: Object) -> list[str]:
    """What the standard forbids in a pod's spec."""
    found = [name for name in HOST if pod.get(name)]
    for volume in pod.get("volumes", []):
        found += [f"volume {kind}" for kind in volume.keys() - {"name"} - VOLUMES]
    for container in [*containers(pod), *pod.get("ephemeralContainers", [])]:
        found += [f"{container['name']}: {what}" for what in _violations(container, pod.get("securityContext", {}))]
    return found


def _violations(container: Object, of_pod: Object) -> list[str]:
    own = container.get("securityContext", {})
    both = of_pod | own
    capabilities = own.get("capabilities", {})
    checks = {
        "privileged": not own.get("privileged", False),
        "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
        "runAsNonRoot": both.get("runAsNonRoot") is True,
        "runAsUser": both.get("runAsUser") != 0,
        "seccompProfile": both.get("seccompProfile", {}).get("type") in PROFILES,
        "capabilities.drop": "ALL" in capabilities.get("drop", []),
        "capabilities.add": set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
        "hostPort": not any(port.get("hostPort") for port in container.get("ports", [])),
        "procMount": own.get("procMount", "Default") == "Default",
    }
    return [name for name, kept in checks.items() if not kept]
