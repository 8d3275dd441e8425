"""An API that fails for a while: what is asked again, what is waited for, and when it is given up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flows.launchers.kubernetes import cluster as kubernetes_cluster
from tasks.errors import TransientError
from tests.flows.launchers.kubernetes.api import KubernetesApi
from tests.flows.launchers.kubernetes.shards import EVENTS, SUCCESS, finish, own


@pytest.mark.parametrize("fault", [500, 503, 429, 504, None])
def test_hiccups_of_the_api(cluster: Callable[..., KubernetesApi], fault: int | None) -> None:
    """Wherever they happen; None is a connection that is cut before the answer."""
    api = cluster(*SUCCESS)
    for route in (r"POST .*/jobs$", r"GET .*/jobs\?", r"GET .*/pods\?", r"GET .*/log\?", r"GET .*/jobs/"):
        api.fail(route, 2, fault)
    events, end = finish()
    assert end.code == 0
    assert own(events) == EVENTS
    assert len(api.jobs) == 1


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        (403, "Forbidden", 'jobs.batch "x" is forbidden: exceeded quota: jobs, requested: 1, used: 50, limited: 50'),
        (409, "Conflict", 'Operation cannot be fulfilled on resourcequotas "jobs": the object has been modified'),
    ],
)
def test_a_quota_on_jobs_is_waited_for(
    cluster: Callable[..., KubernetesApi], status: int, reason: str, message: str
) -> None:
    api = cluster(*SUCCESS)
    api.fail("POST", 3, status, reason, message)
    assert finish()[1].code == 0
    assert len(api.asked("^POST")) == 4


def test_a_job_whose_creation_went_unanswered_is_not_created_twice(cluster: Callable[..., KubernetesApi]) -> None:
    api = cluster(*SUCCESS)
    create = api.create

    def lost(body: dict[str, Any]) -> dict[str, Any]:
        create(body)
        api.create = create  # type: ignore[method-assign]
        raise ConnectionResetError

    api.create = lost  # type: ignore[method-assign]
    assert finish()[1].code == 0
    assert len(api.asked("^POST")) == 2
    assert len(api.jobs) == 1


def test_an_api_that_stays_away_is_a_passing_fault(
    cluster: Callable[..., KubernetesApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_cluster, "PATIENCE", 0.5)
    api = cluster(*SUCCESS)
    api.fail(
        r"GET .*/pods(\?|$)", 10_000, 503, "ServiceUnavailable", "the server is currently unable to handle the request"
    )
    with pytest.raises(TransientError, match="unable to handle the request"):
        finish()
    assert len(api.asked("^DELETE")) == 1
