"""Start a role that is broken on purpose: `python -m faults.launch ROLE`, as `FAULTS_LAUNCH` says.

    no-fencing            dedup's producers fence nobody
    read-uncommitted      dedup's agents are given what aborted transactions wrote
    remember-uncommitted  the encoder remembers vectors before they are committed
    poison                the hash encoder gives NaN, has no memory, is killed or hangs where a text asks for it
    slow-encoder          the encoder takes as many seconds for a window as the failpoint `slow` says, while it is armed

A named fault turns red with each of the first three: so the oracle sees what it is there to see.
"""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np

from encoders.encoder import EncodedBatch, Tokens
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
    rejected = Encode._rejected

    def remembered(self: Encode, done: Any) -> Any:
        for fingerprint, vector in done.vectors.items():
            self._recent.put(fingerprint, vector)
        return rejected(self, done)

    Encode._rejected = remembered


def slow_encoder() -> None:
    """Seconds more for each window."""
    encode = HashEncoder.encode
    slow = Path(os.environ[failpoints.VARIABLE]) / "slow"

    device = threading.Lock()

    def slowly(self: HashEncoder, tokens: Tokens, batch_tokens: int, *rest: Any) -> EncodedBatch:
        with device:
            if slow.exists():
                clock.sleep_s(float(slow.read_text()))
            return encode(self, tokens, batch_tokens, *rest)

    HashEncoder.encode = slowly  # pyright: ignore[reportAttributeAccessIssue]


def poison() -> None:
    """The hash encoder fails as its texts say: `poison:nan`, `poison:oom`, `poison:kill` or `poison:hang` in them."""
    encode = HashEncoder.encode

    def poisoned(self: HashEncoder, tokens: Tokens, batch_tokens: int, *rest: Any) -> EncodedBatch:
        texts = [tokens.take([row]).ids.tobytes() for row in range(len(tokens.lengths))]
        together = b"".join(texts)
        if b"poison:oom" in together:
            raise MemoryError
        if b"poison:kill" in together:
            os.kill(os.getpid(), signal.SIGKILL)
        if b"poison:hang" in together:
            threading.Event().wait()
        encoded = encode(self, tokens, batch_tokens, *rest)
        encoded.vectors[[b"poison:nan" in text for text in texts]] = np.nan
        return encoded

    HashEncoder.encode = poisoned  # pyright: ignore[reportAttributeAccessIssue]


BREAKS = {
    one.__name__.replace("_", "-"): one
    for one in (no_fencing, read_uncommitted, remember_uncommitted, poison, slow_encoder)
}

if __name__ == "__main__":
    BREAKS[os.environ["FAULTS_LAUNCH"]]()
    main()
