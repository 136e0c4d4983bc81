"""TCP proxies that misbehave on command: partitions, latency, resets, and Kafka's replies held back.

All links are served by one event loop on one thread, which looks at no byte but the heads of Kafka's frames. It shares
Python's lock with the test: what computes for long belongs in another process.
"""

import asyncio
import math
import socket
import threading
from collections.abc import Collection, Coroutine
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, TypeVar

from faults.connection import Connection

_CALL_S_MAX = 30.0
_BACKLOG = 1024  # connections that wait to be accepted

Result = TypeVar("Result")


class Proxies:
    """The thread that serves links; a context manager that ends with every link and connection closed."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._links: list[Link] = []

    def link(self, listen_host: str, target_host: str, target_port: int, listen_port: int = 0) -> "Link":
        """A new link, which listens when this returns; its target may come later. `listen_port` 0 is any free one.

        Raises OSError if it cannot listen there.
        """
        listener = socket.create_server((listen_host, listen_port), backlog=_BACKLOG)
        link = Link(self, listener, (target_host, target_port))
        self._links.append(link)
        self.run(link.open())
        return link

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run it on the loop's thread, and return what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_CALL_S_MAX)

    def __enter__(self) -> Self:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every link and connection, and end the thread."""
        for link in self._links:
            self.run(link.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass(frozen=True, slots=True)
class _Faults:
    """What is wrong with a link."""

    cut_to_target: bool = False
    cut_to_client: bool = False
    delay_s: float = 0.0
    held_apis: frozenset[int] = frozenset()
    hold_s: float = 0.0

    @property
    def cut(self) -> bool:
        return self.cut_to_target or self.cut_to_client


class Link:
    """A port whose connections are forwarded to a target; made by `Proxies.link`.

    Its controls may be called from any thread, and are in force when they return. They add up until `heal`; the same
    control again replaces what it said before.
    """

    def __init__(self, proxies: Proxies, listener: socket.socket, target: tuple[str, int]) -> None:
        self.host: str = listener.getsockname()[0]
        self.port: int = listener.getsockname()[1]
        self.target = target
        self.faults = _Faults()
        self.connections: set[Connection] = set()
        self.held = 0
        """How many replies `hold_replies` has held back so far."""
        self._proxies = proxies
        self._listener = listener
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """`host:port` where it listens."""
        return f"{self.host}:{self.port}"

    def cut(self, *, to_target: bool = True, to_client: bool = True) -> None:
        """A partition, in one direction or both: bytes are held back, and nobody is told.

        As TCP would send them again, they go on after `heal`. Connections stay open; new ones are accepted, and reach
        the target after `heal` if their client is still there. What was already handed to the system may arrive. The
        sender has to wait when its system's buffers and ours are full, some MB.
        """
        self._become(replace(self.faults, cut_to_target=to_target, cut_to_client=to_client))

    def delay(self, seconds: float) -> None:
        """Let every byte arrive `seconds` later, in each direction; as many bytes a second as before may pass."""
        self._become(replace(self.faults, delay_s=seconds))

    def hold_replies(self, apis: Collection[int], seconds: float | None = None) -> None:
        """Hold the target's replies to requests of these Kafka APIs back, for `seconds` or, if None, for good.

        What follows on the connection waits behind such a reply, as TCP keeps order; `heal` resets a connection whose
        reply was held for good. Requests that were sent before count too.
        """
        hold_s = math.inf if seconds is None else seconds
        self._become(replace(self.faults, held_apis=frozenset(apis), hold_s=hold_s))

    def reset(self) -> None:
        """Reset (RST) all connections on both sides, now."""

        async def reset() -> None:
            for connection in list(self.connections):
                connection.reset()

        self._proxies.run(reset())

    def heal(self) -> int:
        """Be a good link again; what was held back goes on at once. Returns how many bytes that are."""

        async def held_bytes() -> int:
            return sum(connection.held_bytes() for connection in self.connections)

        async def forgive() -> None:
            for connection in list(self.connections):
                connection.forgive()

        held = self._proxies.run(held_bytes())
        self._become(_Faults())
        self._proxies.run(forgive())
        return held

    def _become(self, faults: _Faults) -> None:
        async def become() -> None:
            self.faults = faults
            for connection in list(self.connections):
                connection.go_on()

        self._proxies.run(become())

    async def open(self) -> None:
        """Begin to accept; for `Proxies`."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self).client, sock=self._listener, backlog=_BACKLOG)

    async def close(self) -> None:
        """Accept no more and reset all connections; for `Proxies`."""
        assert self._server
        self._server.close()
        dials = [dial for connection in list(self.connections) if (dial := connection.reset())]
        await asyncio.gather(*dials, return_exceptions=True)
