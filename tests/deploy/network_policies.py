"""What network policies let through between two pods of one namespace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Object = dict[str, Any]
Labels = Mapping[str, str]


def lets_through(policies: Sequence[Object], source: Labels, target: Labels, port: int) -> bool:
    """Whether ``source`` may open a TCP connection to a port of ``target``."""
    leaves = _allowed(policies, "Egress", source, target, port)
    return leaves and _allowed(policies, "Ingress", target, source, port)


def selects(selector: Object, labels: Labels) -> bool:
    for name, value in selector.get("matchLabels", {}).items():
        if labels.get(name) != value:
            return False
    return all(_meets(one, labels) for one in selector.get("matchExpressions", []))


def _allowed(policies: Sequence[Object], direction: str, subject: Labels, other: Labels, port: int) -> bool:
    """A pod that no policy selects is free; of those that select it, one rule is enough."""
    rules_of, peers_of = ("egress", "to") if direction == "Egress" else ("ingress", "from")
    chosen = [one["spec"] for one in policies]
    chosen = [one for one in chosen if direction in one["policyTypes"] and selects(one["podSelector"], subject)]
    rules = [rule for one in chosen for rule in one.get(rules_of, [])]
    return not chosen or any(_matches(rule, peers_of, other, port) for rule in rules)


def _matches(rule: Object, peers: str, other: Labels, port: int) -> bool:
    ports, found = rule.get("ports"), rule.get(peers)
    fits = ports is None or any(one.get("protocol", "TCP") == "TCP" and one["port"] == port for one in ports)
    return fits and (found is None or any(_is_peer(peer, other) for peer in found))


def _is_peer(peer: Object, labels: Labels) -> bool:
    """Every address of a pod lies in the blocks that we write."""
    assert peer.keys() <= {"podSelector", "ipBlock"}
    return "ipBlock" in peer or selects(peer["podSelector"], labels)


def _meets(expression: Object, labels: Labels) -> bool:
    name, operator = expression["key"], expression["operator"]
    if operator in ("Exists", "DoesNotExist"):
        return (name in labels) is (operator == "Exists")
    return (labels.get(name) in expression["values"]) is (operator == "In")
