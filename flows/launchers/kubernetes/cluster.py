"""A cluster's API, through the official client: the few calls that a launcher makes, each of which blocks.

What comes back is the API's own JSON: the client's models refuse what a newer or older cluster says otherwise. The
client is imported when a cluster is asked for the first time.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tenacity
import urllib3

from flows.launchers.kubernetes.state import Object
from tasks.errors import BadInput, TransientError

Query = Sequence[tuple[str, str]]

OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
CONNECT_SECONDS = 10
ANSWER_SECONDS = 30
QUIET_SECONDS = 60
"""A log that is silent for so long is asked for anew: its connection may be dead without anybody's knowing."""
FIRST_PATIENCE = 15.0
PATIENCE = 300.0
"""Control planes are upgraded while shards go on."""
LONGEST_WAIT = 10.0
CONNECTIONS = 256
UNAUTHORIZED, FORBIDDEN, NOT_FOUND, CONFLICT, GONE = 401, 403, 404, 409, 410
NO_ANSWER = 0
PASSING = (NO_ANSWER, UNAUTHORIZED, 408, 429, 500, 502, 503, 504)
"""Status codes that may be others soon. Tokens are renewed, so a 401 is among them."""
CLIENT_FAULTS = (urllib3.exceptions.HTTPError, OSError)
ROLE = "give the flow the role of deploy/kubernetes, or correct execution.kubernetes.namespace"


class ApiFault(Exception):
    """An answer of the API that is no success: its status code, and the API's word for the reason."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason

    @property
    def may_pass(self) -> bool:
        """Whether the same question may be answered soon. A full quota empties, and quotas are counted in a race."""
        if self.status == FORBIDDEN:
            return "exceeded quota" in str(self)
        if self.status == CONFLICT:
            return self.reason != "AlreadyExists"
        return self.status in PASSING


class Cluster:
    """The cluster, in the namespace of the shards.

    Calls try again for a while when the API does not answer, and then raise TransientError; BadInput if it has never
    answered, or refuses. ``home`` is the namespace that the flow is in.
    """

    def __init__(self, client: Any, namespace: str, home: str | None) -> None:
        self.namespace = namespace
        self.home = home
        self.patience = PATIENCE
        self._client = client
        self._contact = threading.Event()
        self._given_up = threading.Event()

    @classmethod
    def connect(cls, namespace: str | None) -> Cluster:
        """The cluster that the flow's own pod is in, else that of the kubeconfig.

        Raises:
            BadInput: there is neither.
        """
        from kubernetes import client, config

        configuration = client.Configuration()
        configuration.retries = urllib3.Retry(0)  # we know better what may be tried again, and for how long
        configuration.connection_pool_maxsize = CONNECTIONS
        home = None
        try:
            config.load_incluster_config(configuration)
            home = OWN_NAMESPACE.read_text().strip() if OWN_NAMESPACE.exists() else None
        except config.ConfigException:
            try:
                config.load_kube_config(client_configuration=configuration)
                home = config.list_kube_config_contexts()[1]["context"].get("namespace")
            except Exception as error:  # whatever a broken file makes a YAML parser and the client say
                problem = f"there is no cluster: this is no pod with a service account, and no kubeconfig ({error})"
                remedy = "name a kubeconfig in KUBECONFIG, or use another launcher"
                raise BadInput("execution.launcher", "kubernetes", problem, remedy) from error
        return cls(client.ApiClient(configuration), namespace or home or "default", home)

    def until(self, given_up: threading.Event) -> Cluster:
        """The same cluster for somebody who may give up waiting for an answer."""
        view = copy.copy(self)
        view._given_up = given_up
        return view

    @property
    def host(self) -> str:
        return self._client.configuration.host

    def create_job(self, body: Object) -> None:
        """Create a Job. One with its name is this one: a lost answer is no reason for a second."""
        path = f"/apis/batch/v1/namespaces/{self.namespace}/jobs"
        try:
            self._call("POST", path, body=body)
        except ApiFault as fault:
            if fault.status == NOT_FOUND:
                remedy = "create it, or correct it"
                raise BadInput("execution.kubernetes.namespace", self.namespace, str(fault), remedy) from fault
            if fault.status != CONFLICT:
                remedy = "correct execution.container and execution.kubernetes"
                raise BadInput("execution.kubernetes", body["metadata"]["name"], str(fault), remedy) from fault

    def delete_job(self, name: str, grace_seconds: int) -> None:
        """Delete a Job, and with it its pods. Nothing to do when it is gone."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        path = f"/apis/batch/v1/namespaces/{self.namespace}/jobs/{name}"
        self._found("DELETE", path, body=body | {"gracePeriodSeconds": grace_seconds})

    def job(self, name: str) -> Object | None:
        return self._found("GET", f"/apis/batch/v1/namespaces/{self.namespace}/jobs/{name}")

    def jobs(self, selector: str) -> list[Object]:
        path = f"/apis/batch/v1/namespaces/{self.namespace}/jobs"
        return self._call("GET", path, query=[("labelSelector", selector)])["items"]

    def pod(self, name: str, namespace: str) -> Object | None:
        return self._found("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")

    def pods_of(self, job: str) -> tuple[list[Object], str]:
        """Pods of a Job, and the version of the list, to wait for its change."""
        answer = self._call("GET", self._pods, query=[("labelSelector", _of_job(job))])
        return answer["items"], answer["metadata"]["resourceVersion"]

    def await_change(self, job: str, version: str, seconds: float) -> None:
        """Return when the pods of a Job may have changed since ``version``, or after so many seconds."""
        whole = max(1, round(seconds))
        query = [("labelSelector", _of_job(job)), ("watch", "true"), ("resourceVersion", version)]
        query.append(("timeoutSeconds", str(whole)))
        try:
            answer = self._send("GET", self._pods, query, None, whole + CONNECT_SECONDS)
            try:
                next(answer.stream(decode_content=False), b"")  # any event, even the one that says: too old a version
            finally:
                answer.close()
        except (ApiFault, *CLIENT_FAULTS):
            self._given_up.wait(1)  # who asks looks again in any case

    def warnings(self, uid: str) -> list[str]:
        """What the cluster complains about a Job or a pod, oldest first; none where the role doesn't let us look."""
        query = [("fieldSelector", f"involvedObject.uid={uid},type=Warning")]
        try:
            found = self._call("GET", f"/api/v1/namespaces/{self.namespace}/events", query=query)["items"]
        except (BadInput, ApiFault):
            return []
        found.sort(key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
        return [f"{event.get('reason', '')}: {event.get('message', '')}" for event in found]

    def log(self, pod: str, container: str, since: str | None) -> urllib3.BaseHTTPResponse:
        """The log of a container as it grows, each line with its time, from that of ``since`` on.

        Raises:
            ApiFault, urllib3.exceptions.HTTPError, OSError: it can't be read now.
        """
        query = [("container", container), ("follow", "true"), ("timestamps", "true")]
        if since:
            query.append(("sinceTime", since))
        return self._send("GET", f"{self._pods}/{pod}/log", query, None, QUIET_SECONDS)

    @property
    def _pods(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods"

    def _found(self, method: str, path: str, body: Object | None = None) -> Any | None:
        try:
            return self._call(method, path, body=body)
        except ApiFault as fault:
            if fault.status in (NOT_FOUND, GONE):
                return None
            raise

    def _call(self, method: str, path: str, query: Query = (), body: Object | None = None) -> Any:
        """The parsed answer.

        Raises:
            ApiFault: the API says no.
            BadInput: it may not be asked, or can't be.
            TransientError: it has not answered for a long time.
        """
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_delay(self.patience if self._contact.is_set() else FIRST_PATIENCE)
            | tenacity.stop_when_event_set(self._given_up),
            wait=tenacity.wait_exponential_jitter(multiplier=0.2, max=LONGEST_WAIT, jitter=0.5),
            retry=tenacity.retry_if_exception(_may_pass),
            sleep=tenacity.sleep_using_event(self._given_up),
            reraise=True,
        )
        try:
            return retrying(self._answer, method, path, query, body)
        except ApiFault as fault:
            if fault.status == UNAUTHORIZED or (fault.status == FORBIDDEN and not fault.may_pass):
                raise BadInput("execution.kubernetes.namespace", self.namespace, str(fault), ROLE) from fault
            if fault.may_pass:
                raise self._silence(fault) from fault
            raise
        except CLIENT_FAULTS as fault:
            raise self._silence(fault) from fault

    def _silence(self, fault: Exception) -> BadInput | TransientError:
        said = fault.reason if isinstance(fault, urllib3.exceptions.MaxRetryError) else fault
        if self._contact.is_set():
            return TransientError(f"the cluster at {self.host} does not answer: {said}")
        problem = f"the cluster at {self.host} does not answer: {said}"
        return BadInput("execution.launcher", "kubernetes", problem, "start it, or correct the kubeconfig")

    def _answer(self, method: str, path: str, query: Query, body: Object | None) -> Any:
        answer = self._send(method, path, query, body, ANSWER_SECONDS)
        try:
            return json.loads(answer.data)
        except ValueError as error:  # a proxy's page, say
            raise ApiFault(NO_ANSWER, "", "what answers there is no Kubernetes API") from error

    def _send(
        self, method: str, path: str, query: Query, body: Object | None, seconds: float
    ) -> urllib3.BaseHTTPResponse:
        from kubernetes.client import ApiException

        try:
            answer = self._client.call_api(
                path,
                method,
                query_params=list(query),
                header_params={"Accept": "application/json, */*", "Content-Type": "application/json"},
                body=body,
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=(CONNECT_SECONDS, seconds),
            )
        except ApiException as error:
            self._contact.set()
            raise _fault(error) from error
        self._contact.set()
        return answer


def _of_job(name: str) -> str:
    return f"job-name={name}"  # the older of two labels that say so, known to every version


def _may_pass(error: BaseException) -> bool:
    return error.may_pass if isinstance(error, ApiFault) else isinstance(error, CLIENT_FAULTS)


def _fault(error: Any) -> ApiFault:
    """What the API says in its Status object; something in front of it may have answered without one."""
    try:
        status = json.loads(error.body)
        return ApiFault(error.status, status.get("reason", ""), status["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return ApiFault(error.status, "", f"{error.status} {error.reason}")
