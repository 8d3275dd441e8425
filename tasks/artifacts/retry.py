"""Faults of a store: which ones pass, how long to wait for that, and how to say what the others mean.

Errors of client libraries are told by class name and error code, so that none of these libraries is imported
for it.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import tenacity

from tasks.errors import StoreError, TransientError

T = TypeVar("T")

log = logging.getLogger("tomograph.store")

FIRST_WAIT_SECONDS = 0.25
LONGEST_WAIT_SECONDS = 20.0

TRANSIENT_ERRNOS = {
    errno.EAGAIN,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.EINTR,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
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


def persist(action: Callable[[], T], url: str, patience: float) -> T:
    """``action()``, tried again for up to ``patience`` seconds while it meets passing faults.

    The waits grow exponentially and are random, so that many shards don't come back at once.

    Raises:
        TransientError: the fault did not pass.
        StoreError: the store can't be used as it is.
        FileNotFoundError: there is no such object.
    """
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS),
        stop=tenacity.stop_after_delay(patience),
        before_sleep=lambda state: log.warning("%s: %s; trying again", url, _describe(state)),
        reraise=True,
    )
    try:
        return retrying(action)
    except Exception as error:
        if is_transient(error):
            raise TransientError(f"{url}: {str(error) or type(error).__name__}") from error
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


def _describe(state: tenacity.RetryCallState) -> str:
    error = state.outcome.exception() if state.outcome else None
    return f"{type(error).__name__}: {error}"
