"""How a ray's versions are told of: tables of them, and of who reads one."""

from collections.abc import Iterable
from datetime import UTC, datetime

from rich.table import Table

from streams.readers import Reader
from streams.versions import Ray, Served


def state_of(ray: Ray, served: Served) -> str:
    """In a word or two, what a version is to its ray."""
    if served.version == ray.promoted:
        return "promoted"
    if served.retires_ms:
        return f"deprecated, to be retired on {_day(served.retires_ms)}"
    return "shadow" if ray.is_shadow(served.version) else "promoted before"


def versions_table(name: str, ray: Ray) -> Table:
    """A row for each version that is served."""
    table = Table("version", "model", "state", box=None, pad_edge=False)
    table.add_column("share", justify="right")
    table.add_column("added")
    for served in ray.versions:
        version = f"{name}@{served.version}"
        table.add_row(version, served.model, state_of(ray, served), f"{served.share:.0%}", _time(served.added_ms))
    return table


def promotions_table(name: str, ray: Ray) -> Table:
    """What the bare name meant, and since when."""
    table = Table(f"{name} meant", "since", "", box=None, pad_edge=False)
    open_promotions = [promotion for promotion, _ in ray.open_promotions]
    for promotion in ray.promotions:
        is_open = promotion in open_promotions
        note = f"what came before is not all out: `manyray rays promote {name}@{promotion.version}` waits for it"
        table.add_row(promotion.version, _time(promotion.at_ms), note if is_open else "")
    return table


def readers_table(readers: Iterable[Reader]) -> Table:
    """A row for each consumer group."""
    table = Table("group", box=None, pad_edge=False)
    table.add_column("members", justify="right")
    table.add_column("behind", justify="right")
    for reader in readers:
        table.add_row(reader.group, str(reader.members), f"{reader.lag:,}")
    return table


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _day(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).date().isoformat()
