"""What a role's endpoint answers, and to whom."""

import gzip
import http.client
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from schemas.errors import Fatal
from streams.endpoint import CLIENTS_MAX, is_live, serve
from streams.health import Health
from streams.metrics import Metrics, read_metrics
from streams.ports import choose_ports
from streams.settings import load_settings
from tests.waiting import wait_until

Ask = Callable[..., tuple[int, str, bytes]]


@pytest.fixture
def health() -> Health:
    """That of a process that is ready."""
    return Health(threading.Event(), waits_for=lambda: "")


@pytest.fixture
def port(health: Health) -> int:
    """The port of an endpoint with fresh metrics."""
    (port,) = choose_ports([0])
    return serve(Metrics.create().registry, health, load_settings(metrics_port=port), "ingest")


@pytest.fixture
def ask(port: int) -> Iterator[Ask]:
    """Ask the endpoint: status, content type and body."""
    with ExitStack() as connections:

        def request(path: str, method: str = "GET", **headers: str) -> tuple[int, str, bytes]:
            connection = connections.enter_context(closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)))
            connection.request(method, path, headers={name.replace("_", "-"): text for name, text in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.getheader("Content-Type", ""), answer.read()

        yield request


def test_metrics_come_as_they_are_asked_for(ask: Ask, port: int):
    """As Prometheus's text, as OpenMetrics, and packed."""
    status, kind, body = ask("/metrics")
    assert (status, kind.partition(";")[0]) == (200, "text/plain")
    assert b"manyray_ingest_posts_total 0.0" in body
    assert gzip.decompress(ask("/metrics", Accept_Encoding="gzip")[2]) == body
    _, kind, body = ask("/metrics?a=b", Accept="application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    assert "manyray_ingest_posts_total" in {sample.name for sample in read_metrics(f"http://127.0.0.1:{port}/metrics")}


def test_ready_and_live_say_why_not(ask: Ask, health: Health, port: int):
    """200 while there is no reason, else 503 and the reason in one line."""
    url = f"http://127.0.0.1:{port}/metrics"
    assert ask("/ready")[::2] == (200, b"ready\n")
    assert ask("/live")[::2] == (200, b"live\n")
    assert is_live(url, 30)
    health.waits_for = lambda: "it is loading"
    assert ask("/ready")[::2] == (503, b"not ready: it is loading\n")
    assert ask("/live")[0] == 200
    health.stalled = "no progress"
    assert ask("/live")[::2] == (503, b"not live: no progress\n")
    assert ask("/ready")[::2] == (503, b"not ready: no progress\n")
    assert not is_live(url, 30)
    health.stop.set()
    assert ask("/ready")[::2] == (503, b"not ready: it is stopping\n")


def test_only_reading_and_only_what_there_is(ask: Ask, port: int):
    """HEAD is GET without a body; other paths and methods are refused."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.send(b"HEAD /live HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.split(b" ")[1] == b"200"
    assert answer.endswith(b"\r\n\r\n")
    assert ask("/favicon.ico")[0] == 404
    assert ask("/live", "POST")[0] == 501


def test_clients_that_say_nothing_hold_nobody_up(ask: Ask, port: int):
    """An idle client has a thread for a while and is dropped; more than there are threads for are dropped at once."""
    with ExitStack() as idle:
        clients = [
            idle.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30)) for _ in range(CLIENTS_MAX)
        ]
        for client in clients[: CLIENTS_MAX // 2]:
            client.send(b"GET /li")
        one_more = idle.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
        assert one_more.recv(1) == b""
        clients[-1].setblocking(False)
        with pytest.raises(BlockingIOError):  # it still has its thread
            clients[-1].recv(1)
        clients[-1].settimeout(30)
        for client in clients:
            assert client.recv(1) == b""
    with ExitStack() as many:
        for _ in range(2 * CLIENTS_MAX):
            many.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))

        def served() -> bool:
            try:
                return ask("/live")[0] == 200
            except OSError:
                return False

        wait_until(served, "it answers again")


def test_a_client_that_says_a_byte_now_and_then_is_dropped(port: int):
    """Else sixteen of them would keep everybody else away."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.setblocking(False)

        def dropped() -> bool:
            try:
                client.send(b"G")
                return client.recv(1) == b""
            except BlockingIOError:
                return False
            except OSError:
                return True

        wait_until(dropped, "it is dropped")


def test_clients_without_a_thread_hold_nobody_up(ask: Ask, port: int, monkeypatch: pytest.MonkeyPatch):
    """Where this machine has no thread to give they are dropped, and others are served when it has."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(socketserver.ThreadingMixIn, "process_request", refuse)
        for _ in range(2 * CLIENTS_MAX):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
                assert client.recv(1) == b""
    assert ask("/live")[0] == 200


def test_a_port_that_is_set_is_taken_or_refused(port: int, health: Health):
    """With the remedy; without a setting the next free one is taken."""
    metrics = Metrics.create()
    with pytest.raises(Fatal, match=f"port {port} for metrics is in use: set metrics_port to a free one"):
        serve(metrics.registry, health, load_settings(metrics_port=port), "ingest")
    with pytest.raises(Fatal, match=r"metrics_host = 192\.0\.2\.1 cannot be served"):
        serve(metrics.registry, health, load_settings(metrics_host="192.0.2.1"), "ingest")
    first, second = (serve(metrics.registry, health, load_settings(), "encode") for _ in range(2))
    assert second > first
