"""Free TCP ports of this machine's loopback address."""

import socket
from collections.abc import Sequence
from contextlib import ExitStack

from schemas.errors import Fatal
from streams import clock

HOST = "127.0.0.1"

# Below what Linux, macOS and Windows give to outgoing connections: one of those could take a chosen port before its
# user, a Java that takes seconds to start, binds it.
_LOW, _COUNT = 20_000, 12_000
_TRIES = 100


def choose_ports(wanted: Sequence[int]) -> list[int]:
    """One free port for each of `wanted`, all different: the wanted one where it is free, else any; 0 means any.

    A port is free when it can be bound now; another program may still take it before its user does.

    Raises:
        Fatal: this machine has no port left.
    """
    with ExitStack() as held:  # all are held until the last is chosen: so no two are the same
        return [_bind(held, port) for port in wanted]


def _bind(held: ExitStack, wanted: int) -> int:
    for attempt in range(_TRIES):
        port = wanted if wanted and attempt == 0 else _LOW + clock.random_below(_COUNT)
        sock = held.enter_context(socket.socket())
        # As Java's own server sockets do: a port that only waits out old connections is free.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
            sock.listen()  # or, with that option, the next could bind the same port
        except OSError:
            continue
        return port
    raise Fatal(f"{_TRIES} ports of {HOST} were tried and none is free: end what holds them")
