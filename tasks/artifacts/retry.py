"""Faults of a store: which ones pass, how long to wait for that, and how to say what the others mean.

Errors of client libraries are told by class name and error code, so that none of these libraries is imported
for it.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable, Iterator
from typing import TypeVar

import tenacity

from tasks.errors import StoreError, TransientError
from tasks.places.credentials import hidden

T = TypeVar("T")

log = logging.getLogger("tomograph.store")

UNREACHED_PATIENCE_SECONDS = 20.0
"""For a server that can't be reached at all: it refuses connections, or its name means nothing."""
FIRST_WAIT_SECONDS = 0.25
LONGEST_WAIT_SECONDS = 20.0

UNREACHED_ERRNOS = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH}
TRANSIENT_ERRNOS = UNREACHED_ERRNOS | {
    errno.EAGAIN,
    errno.ECONNABORTED,
    errno.ECONNRESET,
    errno.EINTR,
    errno.ENETRESET,
    errno.EPIPE,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
TRANSIENT_CLASSES = {
    "ChunkedEncodingError",
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectTimeoutError",
    "ConnectionClosedError",
    "ConnectionError",
    "EndpointConnectionError",
    "FSTimeoutError",
    "FlexibleChecksumError",
    "HTTPClientError",
    "IncompleteRead",
    "IncompleteReadError",
    "ProtocolError",
    "ReadTimeoutError",
    "ResponseParserError",
    "ResponseStreamingError",
    "Timeout",
    "TimeoutError",
    "TransportError",
}
PERMANENT_CLASSES = {"SSLError", "InvalidProxiesConfigError", "UnsupportedProtocol"}
TRANSIENT_CODES = {
    "InternalError",
    "OperationAborted",
    "PriorRequestNotComplete",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "RequestTimeout",
    "RequestTimeoutException",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    "XAmzContentSHA256Mismatch",
}
TRANSIENT_STATUSES = {408, 429, 500, 502, 503, 504}

MISSING_CODES = {"404", "NoSuchKey", "NoSuchUpload", "NotFound"}

CREDENTIALS_REMEDY = (
    "give credentials by the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE), "
    "~/.aws/credentials or the machine's role"
)
NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}
WRONG_CREDENTIALS = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}


def is_transient(error: BaseException) -> bool:
    """Whether trying again can succeed: a lost connection, a timeout, a busy or failing server."""
    return any(_is_transient(one) for one in _causes(error))


def unreached(error: BaseException) -> str | None:
    """Why no connection comes about at all, or None when there was one, or a fault of another kind."""
    for one in _origins(error):
        if isinstance(one, socket.gaierror):
            return f"the server's name can't be resolved ({one.strerror})"
        if isinstance(one, OSError) and one.errno in UNREACHED_ERRNOS:
            return "connection refused" if one.errno == errno.ECONNREFUSED else "the server's network can't be reached"
    return None


def persist(
    action: Callable[[], T], url: str, patience: float, unreached_patience: float = UNREACHED_PATIENCE_SECONDS
) -> T:
    """``action()``, tried again once at least, and for up to ``patience`` seconds, while it meets passing faults.

    A server that can't be reached at all is waited for up to ``unreached_patience`` seconds. The waits grow
    exponentially and are random, so that many shards don't come back at once.

    Raises:
        TransientError: the fault did not pass.
        StoreError: the store can't be used as it is.
        FileNotFoundError: there is no such object.
    """

    def allowed(error: BaseException) -> float:
        return min(patience, unreached_patience) if unreached(error) else patience

    def given_up(state: tenacity.RetryCallState) -> bool:
        tried_again = state.attempt_number > 1
        return tried_again and state.seconds_since_start >= allowed(state.outcome.exception())

    def tell(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception()
        level = logging.WARNING if state.attempt_number == 1 else logging.INFO  # said once
        log.log(level, "%s: %s; trying again for up to %.0f s", url, _in_words(error), allowed(error))

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS),
        stop=given_up,
        before_sleep=tell,
        reraise=True,
    )
    try:
        return retrying(action)
    except Exception as error:
        if is_transient(error):
            raise TransientError(f"{url}: {_in_words(error)}") from error
        if (explained := explain(error, url)) is not None:
            raise explained from error
        raise


def explain(error: BaseException, url: str) -> StoreError | None:
    """What a lasting fault of the store means for its user, or None when it is no such fault."""
    for one in _causes(error):
        code, name = _code(one), type(one).__name__
        number = one.errno if isinstance(one, OSError) else None
        if code == "NoSuchBucket":
            return StoreError("store", url, "the bucket does not exist", "create it or correct the URL")
        if name in NO_CREDENTIALS:
            return StoreError("store", url, "there are no credentials for it", CREDENTIALS_REMEDY)
        if name == "ProfileNotFound":
            return StoreError("store", url, str(one), "correct AWS_PROFILE or ~/.aws/config")
        if code in WRONG_CREDENTIALS:
            return StoreError("store", url, f"the credentials were refused ({code})", CREDENTIALS_REMEDY)
        if code in {"AccessDenied", "403"}:
            remedy = "give these credentials the right to list, read and write there"
            return StoreError("store", url, "access was denied", remedy)
        if number in {errno.ENOSPC, errno.EDQUOT}:
            remedy = "free some space or choose another store, and run again: finished chunks are kept"
            return StoreError("store", url, "there is no space left", remedy)
        if number in {errno.EACCES, errno.EPERM, errno.EROFS}:
            return StoreError("store", url, "the path is not accessible", "correct its permissions or choose another")
        if number in {errno.ENOTDIR, errno.EISDIR, errno.EEXIST}:
            return StoreError("store", url, f"{one.strerror}", "choose a folder for the store")
        if name == "EndpointResolutionError" or (type(one) is ValueError and "Invalid endpoint" in str(one)):
            remedy = "correct AWS_ENDPOINT_URL or endpoint_url in ~/.aws/config: write https://host:port"
            return StoreError("store", url, f"the S3 endpoint is none ({hidden(str(one))})", remedy)
        if any(base.__name__ == "BotoCoreError" for base in type(one).__mro__):
            return StoreError("store", url, f"{name}: {hidden(str(one))}", "correct the URL, or the AWS_* settings")
        if name == "ClientError" and code not in MISSING_CODES:
            return StoreError("store", url, f"the server answered {code}: {hidden(str(one))}", "correct the URL")
    if isinstance(error, PermissionError):
        return StoreError("store", url, f"access was denied ({error})", "correct the permissions or the credentials")
    return None


def _is_transient(error: BaseException) -> bool:
    names = {base.__name__ for base in type(error).__mro__}
    if names & PERMANENT_CLASSES or isinstance(error, StoreError):
        return False
    if isinstance(error, TransientError) or names & TRANSIENT_CLASSES:
        return True
    if _code(error) in TRANSIENT_CODES or _status(error) in TRANSIENT_STATUSES:
        return True
    return isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _origins(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from, also where a library did not say so."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _code(error: BaseException) -> str | None:
    """S3's name of the error, where the error carries one."""
    response = getattr(error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


def _status(error: BaseException) -> int | None:
    """The HTTP status, where the error carries one (botocore, requests and httpx, aiohttp)."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    status = getattr(response, "status_code", getattr(error, "status", None))
    return status if isinstance(status, int) else None


def _in_words(error: BaseException) -> str:
    text = hidden(str(error)) or type(error).__name__
    return f"{why} ({text})" if (why := unreached(error)) else text
