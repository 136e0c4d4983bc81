"""Laws of the proxies that faults are made with, on plain sockets."""

import hashlib
import os
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from faults import connection
from faults.frames import Api
from faults.proxy import Link, Proxies
from streams import clock
from streams.ports import HOST
from tests.test_faults_frames import reply, request
from tests.waiting import WAIT_S, wait_until

HOUR_S = 3600.0


class Line:
    """A link, its target and connections through it."""

    def __init__(self, proxies: Proxies) -> None:
        self._sockets = ExitStack()
        self._listener = self._kept(socket.create_server((HOST, 0)))
        self.link: Link = proxies.link(HOST, *self._listener.getsockname())

    def _kept(self, sock: socket.socket) -> socket.socket:
        sock.settimeout(WAIT_S)
        return self._sockets.enter_context(sock)

    def dial(self) -> socket.socket:
        """A client's new connection to the link."""
        return self._kept(socket.create_connection((self.link.host, self.link.port)))

    def accept(self) -> socket.socket:
        """The target's side of the next connection that reaches it."""
        return self._kept(self._listener.accept()[0])

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Both sides of a new connection that something has passed, a frame that may stand before Kafka's own."""
        near, far = self.dial(), self.accept()
        far.sendall(reply(0, 0))
        read(near, len(reply(0, 0)))
        return near, far

    def reached(self) -> bool:
        """Whether a connection waits to be accepted by the target."""
        self._listener.settimeout(0)
        try:
            self.accept()
        except BlockingIOError:
            return False
        finally:
            self._listener.settimeout(WAIT_S)
        return True

    def close(self) -> None:
        """Close every socket."""
        self._sockets.close()


@pytest.fixture
def lines() -> Iterator[tuple[Line, Line]]:
    """Two links on one thread."""
    with Proxies() as proxies:
        both = Line(proxies), Line(proxies)
        yield both
        for line in both:
            line.close()


@pytest.fixture
def line(lines: tuple[Line, Line]) -> Line:
    """The link under test."""
    return lines[0]


@pytest.fixture
def settle(lines: tuple[Line, Line]):
    """A function that returns when the thread of the links has done all that could be done before.

    It sends a byte there and back by the other link, twice: what was readable before is read by then.
    """
    near, far = lines[1].connect()

    def settled() -> None:
        for _ in range(2):
            near.sendall(b".")
            far.sendall(far.recv(1))
            near.recv(1)

    return settled


def read(sock: socket.socket, count: int) -> bytes:
    """The next `count` bytes; fewer if they end before."""
    got = bytearray()
    while len(got) < count and (data := sock.recv(count - len(got))):
        got += data
    return bytes(got)


def is_silent(sock: socket.socket) -> bool:
    """Whether nothing came: neither bytes nor an end."""
    sock.settimeout(0)
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    finally:
        sock.settimeout(WAIT_S)
    return False


def is_reset(sock: socket.socket) -> bool:
    """Whether its other side resets it."""
    try:
        return sock.recv(1) == b"never"
    except ConnectionResetError:
        return True


def is_turned_away(line: Line) -> bool:
    """Whether a new connection is reset, which may be before its client knows that it was made."""
    try:
        return is_reset(line.dial())
    except ConnectionResetError:
        return True


def is_writable(sock: socket.socket) -> bool:
    """Whether it takes bytes, if need be after a second in which its other side could read some."""
    return bool(select.select([], [sock], [], 1)[1])


# A good link --------------------------------------------------------------------------------------------------------


def test_bytes_pass_unchanged_and_in_order_both_ways_at_once(line):
    """What goes in comes out, more than any buffer holds, and the end of each direction by itself."""
    sides = line.connect()
    sent = [os.urandom(1 << 20) * 24, os.urandom(1 << 20) * 24]
    got = [hashlib.sha256(), hashlib.sha256()]

    def send(side: int) -> None:
        sides[side].sendall(sent[side])
        sides[side].shutdown(socket.SHUT_WR)

    def receive(side: int) -> None:
        while data := sides[1 - side].recv(1 << 20):
            got[side].update(data)

    threads = [threading.Thread(target=work, args=(side,)) for work in (send, receive) for side in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert [one.digest() for one in got] == [hashlib.sha256(data).digest() for data in sent]


def test_one_side_may_end_before_the_other(line):
    """The end of one direction is passed on, and the other direction goes on."""
    near, far = line.connect()
    near.sendall(b"question")
    near.shutdown(socket.SHUT_WR)
    assert read(far, 8) == b"question"
    assert far.recv(1) == b""
    far.sendall(b"answer")
    far.close()
    assert read(near, 6) == b"answer"
    assert near.recv(1) == b""
    wait_until(lambda: not line.link.connections, "the link has forgotten the connection")


def test_a_target_that_is_not_there_resets(line):
    """A client learns at once that nobody listens behind the link."""
    line.close()
    assert is_turned_away(line)


def test_a_side_that_is_reset_resets_the_other(line):
    """A killed process is as visible through the link as without it."""
    for killed in (0, 1):
        sides = line.connect()
        sides[killed].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, connection.RESET_AT_CLOSE)
        sides[killed].close()
        assert is_reset(sides[1 - killed])


def test_nothing_is_left_after_the_end():
    """With the block the port is closed, connections are reset, and the thread is gone; also when it fails."""

    def fail() -> None:
        with Proxies() as proxies:
            made.append(Line(proxies))
            sides.extend(made[0].connect())
            raise ZeroDivisionError

    made: list[Line] = []
    sides: list[socket.socket] = []
    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(is_reset(side) for side in sides)
    with pytest.raises(ConnectionRefusedError):
        made[0].dial()
    assert "proxies" not in {thread.name for thread in threading.enumerate()}
    made[0].close()


# Faults of any TCP --------------------------------------------------------------------------------------------------


def test_a_cut_holds_and_heal_delivers(line, settle):
    """In a partition nothing comes, not even an end; afterwards everything does, in order."""
    near, far = line.connect()
    near.sendall(b"1")
    assert read(far, 1) == b"1"
    line.link.cut()
    near.sendall(b"234")
    near.shutdown(socket.SHUT_WR)
    far.sendall(b"567")
    settle()
    assert is_silent(near)
    assert is_silent(far)
    line.link.heal()
    assert read(far, 3) == b"234"
    assert far.recv(1) == b""
    assert read(near, 3) == b"567"


def test_a_side_that_is_reset_in_a_cut_resets_the_other_after_it(line, settle):
    """A partition hides also that a process was killed."""
    near, far = line.connect()
    line.link.cut()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, connection.RESET_AT_CLOSE)
    near.close()
    settle()
    assert is_silent(far)
    line.link.heal()
    assert is_reset(far)


def test_a_cut_holds_what_is_already_under_way(line, settle):
    """Bytes that a delay has not let through yet do not pass in a partition either."""
    near, far = line.connect()
    line.link.delay(HOUR_S)
    near.sendall(b"held")
    settle()
    line.link.cut()
    line.link.delay(0)
    settle()
    assert is_silent(far)
    line.link.heal()
    assert read(far, 4) == b"held"


@pytest.mark.parametrize("to_target", [True, False])
def test_a_cut_may_be_one_way(line, settle, to_target):
    """The other direction of an open connection goes on; new connections get nowhere, as no handshake would."""
    near, far = line.connect()
    line.link.cut(to_target=to_target, to_client=not to_target)
    sender, receiver = (near, far) if to_target else (far, near)
    sender.sendall(b"held")
    receiver.sendall(b"passes")
    assert read(sender, 6) == b"passes"
    line.dial()
    settle()
    assert is_silent(receiver)
    assert not line.reached()
    assert line.link.heal() == len(b"held")
    assert read(receiver, 4) == b"held"
    assert line.link.heal() == 0
    wait_until(line.reached, "the new connection has reached the target")


def test_a_connection_made_in_a_cut_works_after_it_if_its_client_waits(line, settle):
    """It reaches the target with all that was sent; that of a client that gave up never does."""
    line.link.cut()
    impatient, patient = line.dial(), line.dial()
    for client in (impatient, patient):
        client.sendall(b"hello")
    impatient.close()
    settle()
    line.link.heal()
    far = line.accept()
    assert read(far, 5) == b"hello"
    patient.sendall(b"!")
    assert read(far, 1) == b"!"
    settle()
    assert not line.reached()


def test_a_delay_is_added_each_way(line):
    """No byte comes before its time."""
    near, far = line.connect()
    line.link.delay(0.2)
    begin_s = clock.monotonic_s()
    near.sendall(b"there")
    far.sendall(read(far, 5))
    assert read(near, 5) == b"there"
    assert clock.monotonic_s() - begin_s >= 0.4


def test_a_delay_is_not_waited_for_by_the_next_bytes(line):
    """What is sent one after another is under way together, in order: a delay takes no throughput."""
    near, far = line.connect()
    line.link.delay(HOUR_S)
    data = os.urandom(1 << 20) * 32  # more than the system's own buffers take
    near.sendall(data)
    assert is_silent(far)
    assert line.link.heal() > 0
    assert read(far, len(data)) == data


def test_what_is_under_way_is_bounded(line, monkeypatch):
    """At `LINE_BYTES_MAX` the sender has to wait."""
    monkeypatch.setattr(connection, "LINE_BYTES_MAX", 1 << 20)
    near, far = line.connect()
    line.link.delay(HOUR_S)
    near.settimeout(0)
    sent = passed = 0
    while is_writable(near):
        sent += near.send(b"x" * (1 << 20))
        assert sent < 32 << 20
    line.link.heal()
    while passed < sent:
        passed += len(far.recv(1 << 20))
    assert passed == sent


def test_reset_closes_what_is_open(line):
    """Both sides are told at once, and new connections work."""
    sides = line.connect()
    line.link.reset()
    assert is_reset(sides[0])
    assert is_reset(sides[1])
    near, far = line.connect()
    near.sendall(b"1")
    assert read(far, 1) == b"1"


# Faults of Kafka ----------------------------------------------------------------------------------------------------


def test_replies_of_the_named_apis_are_dropped_and_others_pass(line, settle):
    """Requests pass, also such as were sent before; on that connection nothing more comes, and heal resets it."""
    near, far = line.connect()
    other_near, other_far = line.connect()
    asked = request(3, 1) + request(Api.END_TXN, 2) + request(3, 3)
    near.sendall(asked)
    assert read(far, len(asked)) == asked
    line.link.hold_replies({Api.END_TXN, Api.TXN_OFFSET_COMMIT})
    far.sendall(reply(1) + reply(2) + reply(3))
    assert read(near, len(reply(1))) == reply(1)
    wait_until(lambda: line.link.held == 1, "the reply is held")
    other_near.sendall(request(Api.PRODUCE, 2))
    assert read(other_far, len(request(Api.PRODUCE, 2)))
    other_far.sendall(reply(2))
    assert read(other_near, len(reply(2))) == reply(2)
    settle()
    assert is_silent(near)
    line.link.heal()
    assert is_reset(near)
    assert is_reset(far)
    assert is_silent(other_near)


def test_replies_of_the_named_apis_are_late(line):
    """They come after their time, with all that waits behind them, and not before."""
    near, far = line.connect()
    line.link.hold_replies({Api.END_TXN}, 0.3)
    near.sendall(request(Api.END_TXN, 7) + request(3, 8))
    assert read(far, 2 * len(request(3, 8)))
    begin_s = clock.monotonic_s()
    far.sendall(reply(7) + reply(8))
    assert read(near, 2 * len(reply(7))) == reply(7) + reply(8)
    assert clock.monotonic_s() - begin_s >= 0.3
    assert line.link.held == 1


def test_a_late_reply_comes_at_heal(line):
    """What was only to be late is lost no more than anything else."""
    near, far = line.connect()
    line.link.hold_replies({Api.END_TXN}, HOUR_S)
    near.sendall(request(Api.END_TXN, 7))
    far.sendall(reply(7)[:6] if read(far, 1) else b"")
    far.sendall(reply(7)[6:])
    wait_until(lambda: line.link.held == 1, "the reply is held")
    line.link.heal()
    assert read(near, len(reply(7))) == reply(7)
