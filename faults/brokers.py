"""Rows 5 to 7: brokers that end, and connections that fail."""

import math
from collections.abc import Callable
from functools import partial

from faults.fault import THREE_BROKERS, Fault, add, fault
from faults.frames import Api
from faults.proxy import Link
from faults.run import FAILURES, FaultError, Run
from streams import clock
from streams.transactions import WAIT_S
from streams.up import ROLES

BOUNCES = 5
DOWN_S = 3.0
LONG_DOWN_S = 70.0
PARTITION_S = 20.0
"""Longer than the sessions of brokers (5 s) and of group members (6 s)."""
SILENT_S_MAX = 60.0
"""Of output while two of three brokers do their work, or all but some connections."""
FAILED_OVER = (3.0, SILENT_S_MAX)
"""Seconds of silence: a cluster needs longer to see that a broker says nothing, which has a session of 5 s."""
WENT_ON = (0.0, SILENT_S_MAX)
"""It may go on without anybody's seeing it."""
FLAP_S = 2.0
FLAPS = 8
LATENCY_S = 0.5
LATENCY_LASTS_S = 30.0
HOLD_S = 15.0
"""Longer than transaction_timeout_ms."""
GIVEN_UP_S = WAIT_S + 5
WHOLE_S = 120.0

Find = Callable[[Run], int]


def _leader(run: Run) -> int:
    return run.cluster.leader(run.topics.lookups, 0)


def _controller(run: Run) -> int:
    return run.cluster.controller()


def _group_coordinator(run: Run) -> int:
    role = ROLES[int(run.random.integers(len(ROLES)))]  # another one each time
    return run.cluster.coordinator_of_group(f"manyray.{role}.{run.settings.ray}")


def _transaction_coordinator(run: Run) -> int:
    return run.cluster.coordinator_of_transaction(f"{run.topics.dedup_group}.0")


TARGETS: dict[str, Find] = {
    "leader": _leader,
    "controller": _controller,
    "group-coordinator": _group_coordinator,
    "transaction-coordinator": _transaction_coordinator,
}


def _bounce(find: Find, run: Run, *, hard: bool) -> None:
    """Five times: end the broker that does something, start it again, and wait until new posts come out."""
    for _ in range(BOUNCES):
        server = run.cluster.servers[find(run)]
        if hard:
            server.kill()
        else:
            server.stop()
        run.rest(DOWN_S)
        server.start()
        run.cluster.wait_until_whole(WHOLE_S)
        run.await_flow()


for _name, _find in TARGETS.items():
    for _how, _hard in (("hard", True), ("clean", False)):
        _strike = partial(_bounce, _find, hard=_hard)
        add(Fault(f"bounce-{_name}-{_how}", 6, _strike, **THREE_BROKERS, silent_s=WENT_ON))


@fault(6, **THREE_BROKERS, silent_s=WENT_ON)
def broker_down_70_s(run: Run) -> None:
    """One of three brokers is down for longer than any session or timeout; the others do the work meanwhile."""
    server = run.cluster.servers[_leader(run)]
    server.kill()
    began_s = clock.monotonic_s()
    run.await_flow()
    run.rest(max(0.0, LONG_DOWN_S - (clock.monotonic_s() - began_s)))
    server.start()
    run.cluster.wait_until_whole(WHOLE_S)


@fault(6, **THREE_BROKERS, silent_s=(LONG_DOWN_S, math.inf))
def all_brokers_down_70_s(run: Run) -> None:
    """All brokers are killed; the roles wait, or end and are started again."""
    for server in run.cluster.servers.values():
        server.kill()
    run.rest(LONG_DOWN_S)
    for server in run.cluster.servers.values():
        server.launch()
    run.cluster.wait_until_whole(WHOLE_S)


@fault(6, silent_s=(HOLD_S, math.inf))
def only_broker_killed(run: Run) -> None:
    """The one broker there is dies, and is back when every transaction that was open has run out of time."""
    (server,) = run.cluster.servers.values()
    server.kill()
    run.rest(HOLD_S)
    server.start()


@fault(6, **THREE_BROKERS, silent_s=FAILED_OVER)
def broker_paused(run: Run) -> None:
    """A broker that says nothing and keeps its connections, as on a host that swaps."""
    server = run.cluster.servers[_leader(run)]
    server.pause()
    run.rest(PARTITION_S)
    server.resume()
    run.cluster.wait_until_whole(WHOLE_S)


@fault(6, **THREE_BROKERS, silent_s=(PARTITION_S, math.inf))
def roles_started_without_brokers(run: Run) -> None:
    """Every role is killed while no broker is there: it is started again and again until one is."""
    for server in run.cluster.servers.values():
        server.kill()
    for role in ROLES:
        run.kill(role)
    run.rest(PARTITION_S)
    for server in run.cluster.servers.values():
        server.launch()
    run.cluster.wait_until_whole(WHOLE_S)


def _clients_of_leader(run: Run) -> list[Link]:
    return [run.cluster.clients(_leader(run))]


def _around(find: Find, run: Run) -> tuple[list[Link], list[Link]]:
    """The links by which a broker asks the others, and those by which they ask it."""
    one, cluster = find(run), run.cluster
    others = [other for other in cluster.servers if other != one]
    asks = [link for other in others for link in cluster.between(one, other)]
    asked = [link for other in others for link in cluster.between(other, one)]
    return asks, asked


def _around_leader(run: Run) -> list[Link]:
    asks, asked = _around(_leader, run)
    return asks + asked


PATHS: dict[str, Callable[[Run], list[Link]]] = {"clients": _clients_of_leader, "brokers": _around_leader}


def _partition(links: Callable[[Run], list[Link]], run: Run, **directions: bool) -> None:
    cut = links(run)
    for link in cut:
        link.cut(**directions)
    run.rest(PARTITION_S)
    _heal(cut)
    run.cluster.wait_until_whole(WHOLE_S)


def _one_way(find: Find, run: Run, *, out: bool) -> None:
    """No byte from a broker reaches the others, while theirs reach it; or the other way round."""
    asks, asked = _around(find, run)
    for link in asks:
        link.cut(to_target=out, to_client=not out)
    for link in asked:
        link.cut(to_target=not out, to_client=out)
    run.rest(PARTITION_S)
    _heal(asks + asked)
    run.cluster.wait_until_whole(WHOLE_S)


def _flap(links: Callable[[Run], list[Link]], run: Run) -> None:
    """Cut, reset, and whole again, in turn."""
    flapping = links(run)
    for number in range(FLAPS):
        for link in flapping:
            if number % 2:
                link.reset()
            else:
                link.cut()
        run.rest(FLAP_S)
        if number % 2 == 0:
            _heal(flapping)
        run.rest(FLAP_S)
    run.cluster.wait_until_whole(WHOLE_S)


def _delay(links: Callable[[Run], list[Link]], run: Run) -> None:
    slow = links(run)
    for link in slow:
        link.delay(LATENCY_S)
    run.rest(LATENCY_LASTS_S)
    _heal(slow)
    run.cluster.wait_until_whole(WHOLE_S)


def _heal(links: list[Link]) -> None:
    if not sum([link.heal() for link in links]):
        raise FaultError("nothing wanted to go where it could not")


for _path, _links in PATHS.items():
    add(Fault(f"{_path}-cut", 7, partial(_partition, _links), **THREE_BROKERS, silent_s=FAILED_OVER))
    add(Fault(f"{_path}-flap", 7, partial(_flap, _links), **THREE_BROKERS, silent_s=WENT_ON))
    add(Fault(f"{_path}-latency", 7, partial(_delay, _links), **THREE_BROKERS, silent_s=WENT_ON))
for _what, _direction in (("requests", {"to_client": False}), ("replies", {"to_target": False})):
    _strike = partial(_partition, _clients_of_leader, **_direction)
    add(Fault(f"clients-cut-{_what}", 7, _strike, **THREE_BROKERS, silent_s=FAILED_OVER))
for _name in ("leader", "controller"):
    for _way, _out in (("out", True), ("in", False)):
        _strike = partial(_one_way, TARGETS[_name], out=_out)
        add(Fault(f"{_name}-cut-{_way}", 7, _strike, **THREE_BROKERS, silent_s=WENT_ON))


def _hold(api: Api, seconds: float | None, lasts_s: float, run: Run) -> None:
    """Hold replies to a transactional call back until some were, then be a good network again."""
    link = run.cluster.clients(1)
    held, before = link.held, run.by_process(FAILURES)
    link.hold_replies([api], seconds)
    run.wait_until(lambda: link.held > held, "a reply is held back")
    run.rest(lasts_s)
    link.heal()
    failed = run.failed_since(before)
    run.note(f"transactions failed in {', '.join(process for process, _ in failed) or 'no process'}")
    if not failed and (seconds is None or api is not Api.END_TXN):  # a commit that is told late has been done
        raise FaultError("no transaction failed")


for _api in (Api.END_TXN, Api.ADD_PARTITIONS_TO_TXN, Api.ADD_OFFSETS_TO_TXN, Api.TXN_OFFSET_COMMIT, Api.PRODUCE):
    _call = _api.name.lower().replace("_", "-")
    add(Fault(f"delayed-{_call}", 5, partial(_hold, _api, HOLD_S, HOLD_S + 5), rate=500))
    # Longer than a call is waited for: so producers are built anew, which then learn what became of the transaction.
    patient = {"stall_timeout_s": 3 * GIVEN_UP_S}
    add(Fault(f"dropped-{_call}", 5, partial(_hold, _api, None, GIVEN_UP_S), rate=500, settings=patient))


@fault(5, rate=500, settings={"stall_timeout_s": 3 * GIVEN_UP_S}, silent_s=(HOLD_S, math.inf))
def dropped_init_producer_id(run: Run) -> None:
    """Producers that are built anew are not answered: those of a dedup that was killed."""
    link = run.cluster.clients(1)
    before = link.held
    link.hold_replies([Api.INIT_PRODUCER_ID])
    run.kill("dedup")
    run.wait_until(lambda: link.held > before, "a reply is held back")
    run.rest(GIVEN_UP_S)
    link.heal()
