"""Start a role that is broken on purpose: `python -m faults.launch ROLE`, as `FAULTS_LAUNCH` says.

    no-fencing            dedup's producers fence nobody
    read-uncommitted      dedup's agents are given what aborted transactions wrote
    remember-uncommitted  the encoder remembers vectors before they are committed
    slow-encoder          the encoder takes as many seconds for a window as the failpoint `slow` says, while it is armed

A named fault turns red with each of the first three: so the oracle sees what it is there to see.
"""

import os
from pathlib import Path
from typing import Any

from encoders.hashing import HashEncoder
from manyray.cli import main
from streams import clock, failpoints, lane, transport
from streams.encode import Encode
from streams.transactions import StageProducer

# pyright: reportPrivateUsage=false


def no_fencing() -> None:
    """Every producer has an id of its own."""

    def create(settings: Any, transactional_id: str, *rest: Any, **how: Any) -> StageProducer:
        return StageProducer.create(settings, f"{transactional_id}.{clock.random_id()}", *rest, **how)

    class Unfenced(StageProducer):
        pass

    Unfenced.create = create  # pyright: ignore[reportAttributeAccessIssue]
    lane.StageProducer = Unfenced


def read_uncommitted() -> None:
    """Faust's consumer reads as it does by itself."""
    made = transport._ReadCommittedThread._create_worker_consumer

    def create(self: Any, transport: Any) -> Any:
        consumer = made(self, transport)
        consumer._isolation_level = "read_uncommitted"
        return consumer

    transport._ReadCommittedThread._create_worker_consumer = create


def remember_uncommitted() -> None:
    """What is computed is remembered before its transaction: done again, it looks as if it had been known."""
    embeddings = Encode._embeddings

    def remembered(self: Encode, done: Any) -> Any:
        for fingerprint, vector in done.vectors.items():
            self._recent.put(fingerprint, vector)
        return embeddings(self, done)

    Encode._embeddings = remembered


def slow_encoder() -> None:
    """Seconds more for each window."""
    encode = HashEncoder.encode
    slow = Path(os.environ[failpoints.VARIABLE]) / "slow"

    def slowly(self: HashEncoder, tokens: Any, batch_tokens: int, on_batch: Any = lambda: None) -> Any:
        if slow.exists():
            clock.sleep_s(float(slow.read_text()))
        return encode(self, tokens, batch_tokens, on_batch)

    HashEncoder.encode = slowly


BREAKS = {
    one.__name__.replace("_", "-"): one for one in (no_fencing, read_uncommitted, remember_uncommitted, slow_encoder)
}

if __name__ == "__main__":
    BREAKS[os.environ["FAULTS_LAUNCH"]]()
    main()
