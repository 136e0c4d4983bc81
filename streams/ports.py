"""Free TCP ports of this machine's loopback address."""

import socket
from collections.abc import Sequence
from contextlib import ExitStack

HOST = "127.0.0.1"


def choose_ports(wanted: Sequence[int]) -> list[int]:
    """One free port for each of `wanted`, all different: the wanted one where it is free, else any; 0 means any.

    A port is free when it can be bound now; another program may still take it before its user does.
    """
    with ExitStack() as held:  # all are held until the last is chosen: so no two are the same
        return [_bind(held, port) for port in wanted]


def _bind(held: ExitStack, wanted: int) -> int:
    for port in (wanted, 0):
        sock = held.enter_context(socket.socket())
        # As Java's own server sockets do: a port that only waits out old connections is free.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
            sock.listen()  # or, with that option, the next could bind the same port
        except OSError:
            if port == 0:
                raise
            continue
        return int(sock.getsockname()[1])
    raise AssertionError("unreachable: port 0 either binds or raises")
