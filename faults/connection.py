"""A connection through a proxy: what one side says, on its way to the other, late or held back as its link says."""

import asyncio
import fcntl
import math
import socket
import struct
import termios
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from faults.frames import Conversation

if TYPE_CHECKING:
    from faults.proxy import Link

LINE_BYTES_MAX = 64 << 20
"""Bytes of one connection that may be on their way in one direction: at more its source is not read, and has to wait.

Through a link of 0.5 s that is 128 MB/s.
"""

RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends RST, and not FIN


class Connection:
    """A client's connection and the one to the target that it is forwarded to."""

    def __init__(self, link: "Link") -> None:
        self.conversation = Conversation()
        to_target = _Flow(link, self, to_target=True)
        to_client = _Flow(link, self, to_target=False)
        self._link = link
        self._flows = (to_target, to_client)
        self.client = _End(self, reads=to_target, writes=to_client)
        self._target = _End(self, reads=to_client, writes=to_target)
        self._dial: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """The client is here."""
        self._link.connections.add(self)
        self.go_on()

    def go_on(self) -> None:
        """Do what the link's faults allow now."""
        # While one direction is cut no handshake of TCP would succeed.
        if self._dial is None and not self._link.faults.cut:
            self._dial = asyncio.get_running_loop().create_task(self._reach_target())
        for flow in self._flows:
            flow.go_on()

    async def _reach_target(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self._target, *self._link.target)
        except OSError:
            self.reset()

    def held_bytes(self) -> int:
        """What has not reached the other side, in the directions in which the link is not a good one."""
        return sum(flow.held_bytes() for flow in self._flows)

    def forgive(self) -> None:
        """Send on what was held, or reset if the client can no longer get all of it."""
        if any(flow.lost for flow in self._flows):
            self.reset()
        else:
            for flow in self._flows:
                flow.forgive()

    def flow_ended(self) -> None:
        """One side has said all, and the other side knows."""
        if all(flow.ended for flow in self._flows):
            self._link.connections.discard(self)
            for end in (self.client, self._target):
                end.close()

    def end_lost(self) -> None:
        """A side is gone: if it had not said all, the other side is told by a reset."""
        if not all(flow.ended for flow in self._flows):
            self.reset()

    def reset(self) -> asyncio.Task[None] | None:
        """Reset both sides; returns the attempt to reach the target, which is cancelled."""
        self._link.connections.discard(self)
        for flow in self._flows:
            flow.stop()
        for end in (self.client, self._target):
            end.reset()
        if self._dial:
            self._dial.cancel()
        return self._dial


class _End(asyncio.Protocol):
    """A socket: one flow reads from it, the other writes to it."""

    def __init__(self, connection: Connection, *, reads: "_Flow", writes: "_Flow") -> None:
        self._connection = connection
        self._reads = reads
        self._writes = writes
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        # asyncio does it only where a socket names its protocol, which one that was accepted does not: without it each
        # answer waits for the acknowledgement of the one before, up to 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport = transport
        self._reads.source = transport
        self._writes.sink = transport
        if self is self._connection.client:
            self._connection.begin()
        else:
            self._connection.go_on()

    def data_received(self, data: bytes) -> None:  # up to 256 KiB
        self._reads.arrive(data)

    def eof_received(self) -> bool:
        self._reads.arrive(b"")
        return True  # it may still want to hear the rest

    def pause_writing(self) -> None:
        self._writes.sink_full = True
        self._writes.go_on()

    def resume_writing(self) -> None:
        self._writes.sink_full = False
        self._writes.go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.end_lost()

    def close(self) -> None:
        """Close when all is sent."""
        if self._transport:
            self._transport.close()

    def reset(self) -> None:
        """Close now, with RST."""
        if self._transport and not self._transport.is_closing():
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            self._transport.abort()


class _Piece(NamedTuple):
    """Bytes on their way; none at all are the end of the stream."""

    arrived_s: float
    hold_s: float
    data: bytes


class _Flow:
    """One direction of a connection: what its source sent, and its sink is to get later, in order."""

    def __init__(self, link: "Link", connection: Connection, *, to_target: bool) -> None:
        self.source: asyncio.Transport | None = None
        self.sink: asyncio.Transport | None = None
        self.sink_full = False
        self.ended = False  # the sink was told that there is no more
        self._link = link
        self._connection = connection
        self._to_target = to_target
        self._line: deque[_Piece] = deque()
        self._line_bytes = 0
        self._source_ended = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def lost(self) -> bool:
        """Whether a reply is held for good."""
        return any(piece.hold_s == math.inf for piece in self._line)

    def held_bytes(self) -> int:
        """What has not reached the sink, and lies here or in the source's socket; 0 if nothing holds it back."""
        faults = self._link.faults
        if not (self._is_cut or faults.delay_s or faults.held_apis):
            return 0
        unread = bytearray(struct.calcsize("i"))
        if self.source and not self.source.is_closing():
            fcntl.ioctl(self.source.get_extra_info("socket").fileno(), termios.FIONREAD, unread)
        return self._line_bytes + struct.unpack("i", unread)[0]

    @property
    def _is_cut(self) -> bool:
        return self._link.faults.cut_to_target if self._to_target else self._link.faults.cut_to_client

    def arrive(self, data: bytes) -> None:
        """Take what the source sent."""
        if not data:
            self._source_ended = True
            if self.sink is None and self._link.faults.cut:  # it gave up; to the target it was never there
                self._connection.reset()
                return
        held_from = len(data)
        if self._to_target:
            self._connection.conversation.ask(data)
        else:
            for start, api in self._connection.conversation.answer(data):
                if api in self._link.faults.held_apis:
                    self._link.held += 1
                    held_from = min(held_from, start)
        if held_from or not data:
            self._append(data[:held_from], 0.0)
        if held_from < len(data):
            self._append(data[held_from:], self._link.faults.hold_s)
        self.go_on()

    def _append(self, data: bytes, hold_s: float) -> None:
        self._line.append(_Piece(asyncio.get_running_loop().time(), hold_s, data))
        self._line_bytes += len(data)

    def go_on(self) -> None:
        """Send what is due, and read on if there is room."""
        if self._timer:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        faults = self._link.faults
        cut = self._is_cut
        while self._line and self.sink and not self.sink_full and not cut:
            arrived_s, hold_s, data = self._line[0]
            wait_s = arrived_s + faults.delay_s + hold_s - loop.time()
            if wait_s > 0:
                if wait_s < math.inf:
                    self._timer = loop.call_later(wait_s, self.go_on)
                break
            self._line.popleft()
            self._line_bytes -= len(data)
            self._send(data)
        if self.source and not self._source_ended:
            # A client that waits for its connection to the target is read on, to learn whether it gives up.
            if self._line_bytes >= LINE_BYTES_MAX or self.sink_full or (cut and self.sink):
                self.source.pause_reading()
            else:
                self.source.resume_reading()

    def _send(self, data: bytes) -> None:
        assert self.sink
        if data:
            self.sink.write(data)
            return
        with suppress(OSError):  # the sink has just been reset: we shall hear of it
            self.sink.write_eof()
        self.ended = True
        self._connection.flow_ended()

    def forgive(self) -> None:
        """Hold nothing back any longer."""
        self._line = deque(piece._replace(hold_s=0.0) for piece in self._line)
        self.go_on()

    def stop(self) -> None:
        """Forget what is on its way."""
        self._line.clear()
        if self._timer:
            self._timer.cancel()
