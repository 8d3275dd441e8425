"""An HTTP proxy in front of a real S3 server that commits one fault for each request it is told to spoil."""

from __future__ import annotations

import contextlib
import http.client
import secrets
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal["drop", "lose_answer", "truncate", "cut_short", "flip", "slow_down", "internal_error"]

_ERRORS = {"slow_down": (503, "SlowDown"), "internal_error": (500, "InternalError")}


@dataclass
class FaultyProxy:
    """``endpoint`` of the proxy, what it was asked for, and the faults still to come."""

    endpoint: str
    requests: list[str] = field(default_factory=list)
    """``METHOD /path?query`` of every request."""
    _plan: list[tuple[Fault, Callable[[str], bool]]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def spoil(self, count: int, fault: Fault, which: Callable[[str], bool] = lambda request: True) -> None:
        """Commit ``fault`` on the next ``count`` requests for which ``which`` is true."""
        self._plan += [(fault, which)] * count

    @property
    def faults_left(self) -> int:
        return len(self._plan)

    def next_fault(self, request: str) -> Fault | None:
        with self._lock:
            self.requests.append(request)
            for i, (fault, which) in enumerate(self._plan):
                if which(request):
                    del self._plan[i]
                    return fault
        return None


@contextlib.contextmanager
def faulty_proxy(upstream: str) -> Iterator[FaultyProxy]:
    """A proxy to the server at ``upstream`` (``http://host:port``)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    proxy = FaultyProxy(f"http://127.0.0.1:{server.server_address[1]}")
    server.proxy, server.upstream = proxy, urlsplit(upstream).netloc
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        if self.headers.get("Expect") == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.proxy.next_fault(f"{self.command} {self.path}")
        if fault == "drop":
            self._reset()
            return
        if fault in _ERRORS:
            self._refuse(*_ERRORS[fault])
            return
        status, headers, content = self._forward(body)
        if fault == "lose_answer":
            self._reset()
            return
        if fault in ("cut_short", "flip") and content:
            content = content[: len(content) // 2] if fault == "cut_short" else _flipped(content)
            headers = [(name, str(len(content)) if name.lower() == "content-length" else it) for name, it in headers]
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in {"transfer-encoding", "connection"}:
                self.send_header(name, value)
        self.end_headers()
        if fault == "truncate":
            self.wfile.write(content[: len(content) // 2])
            self._reset()
            return
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

    def handle_expect_100(self) -> bool:
        return True  # answered in _handle, after the standard handler would have done it twice

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server.upstream)
        with contextlib.closing(connection):
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "expect":
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
            return answer.status, answer.getheaders(), content

    def _refuse(self, status: int, code: str) -> None:
        content = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _reset(self) -> None:
        linger_zero = struct.pack("ii", 1, 0)  # close with a reset instead of a polite end
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_zero)
        self.close_connection = True
        self.connection.close()
        self.wfile = contextlib.nullcontext()  # nothing left to flush
        self.rfile = contextlib.nullcontext()

    def finish(self) -> None:
        if not self.close_connection or self.connection.fileno() != -1:
            super().finish()

    def log_message(self, *args: object) -> None:
        pass


def _flipped(content: bytes) -> bytes:
    """With one bit of one byte changed, another one each time."""
    at = secrets.randbelow(len(content))
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
