"""All faults: `FAULTS` is whole once the modules of all rows are imported."""

from faults import brokers, hanging, poison, pressure, processes, rebalances, replays, security, state  # noqa: F401 # pyright: ignore[reportUnusedImport]
from faults.fault import FAULTS

__all__ = ["FAULTS"]
