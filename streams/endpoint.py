"""The HTTP endpoint of a role: `/metrics` for Prometheus, `/live` and `/ready` for whoever keeps processes running."""

import errno
import gzip
import logging
import socket
import socketserver
import threading
import urllib.request
from contextlib import suppress
from http import HTTPStatus
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted

from schemas.errors import Fatal
from streams import clock
from streams.health import Health
from streams.settings import Settings

_log = logging.getLogger("manyray.metrics")

DEFAULT_PORT = {"ingest": 9101, "dedup": 9102, "encode": 9103}
CLIENT_TIMEOUT_S = 5.0
"""A client that takes longer is dropped."""
CLIENTS_MAX = 16
"""Served at once; more are dropped."""

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens an endpoint of ours, whatever proxy the environment names for others."""


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Not http.server's, which looks its own name up in the DNS before it serves."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, host: str, port: int, registry: CollectorRegistry, health: Health) -> None:
        self.registry, self.health = registry, health
        self._free = threading.BoundedSemaphore(CLIENTS_MAX)
        self._until_s: dict[socket.socket, float] = {}
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        self._until_s[request] = clock.monotonic_s() + CLIENT_TIMEOUT_S
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._forget(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def service_actions(self) -> None:
        """Called twice a second: a time-out of each read alone would let a client say a byte now and then."""
        now_s = clock.monotonic_s()
        for request, until_s in self._until_s.copy().items():
            if now_s > until_s:
                with suppress(OSError):  # it went away by itself
                    request.shutdown(socket.SHUT_RDWR)

    def _forget(self, request: Any) -> None:
        self._until_s.pop(request, None)
        self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""
        _log.debug("a client was not served", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """One request a connection."""

    timeout = CLIENT_TIMEOUT_S

    def do_GET(self) -> None:
        server, path = self.server, urlsplit(self.path).path
        assert isinstance(server, _Server)
        if path == "/metrics":
            self._metrics(server.registry)
        elif path == "/live":
            self._state("live", server.health.why_not_live())
        elif path == "/ready":
            self._state("ready", server.health.why_not_ready())
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"there are /metrics, /live and /ready\n")

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of requests."""

    def _state(self, name: str, why_not: str) -> None:
        if why_not:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, f"not {name}: {why_not}\n".encode())
        else:
            self._answer(HTTPStatus.OK, f"{name}\n".encode())

    def _metrics(self, registry: CollectorRegistry) -> None:
        encode, content_type = choose_encoder(self.headers.get("Accept", ""))
        body, headers = encode(registry), {"Content-Type": content_type}
        if gzip_accepted(self.headers.get("Accept-Encoding", "")):
            body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
        self._answer(HTTPStatus.OK, body, headers)

    def _answer(self, status: HTTPStatus, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {"Content-Type": "text/plain; charset=utf-8"}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def serve(registry: CollectorRegistry, health: Health, settings: Settings, role: str) -> int:
    """Serve the endpoint on threads of its own and return its port.

    A port that is set is taken or refused; the default moves on to the next free one.

    Raises:
        Fatal: the port that was set is in use, or no default is free.
    """
    wanted = settings.metrics_port
    first = wanted or DEFAULT_PORT[role]
    for port in [first] if wanted else range(first, first + 200, 10):
        try:
            server = _Server(settings.metrics_host, port, registry, health)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise Fatal(f"metrics_host = {settings.metrics_host} cannot be served: {error.strerror}") from None
            continue
        threading.Thread(target=server.serve_forever, name="endpoint", daemon=True).start()
        _log.info("metrics on http://%s:%d/metrics", settings.metrics_host, port)
        return port
    remedy = "set metrics_port to a free one" if wanted else "set metrics_port"
    raise Fatal(f"port {first} for metrics is in use: {remedy}")


def is_live(metrics_url: str, timeout_s: float) -> bool:
    """Whether the process with this endpoint says in time that it makes progress."""
    try:
        with DIRECT.open(metrics_url.removesuffix("/metrics") + "/live", timeout=timeout_s):
            return True
    except (OSError, HTTPException):  # 503 is an OSError too
        return False
