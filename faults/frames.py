"""Kafka's frames in a stream of bytes: which API each request names, and which reply answers which request. Pure."""

from collections import deque
from collections.abc import Iterator
from enum import IntEnum


class Api(IntEnum):
    """The keys of the APIs that transactions are made of (https://kafka.apache.org/protocol#protocol_api_keys)."""

    PRODUCE = 0
    INIT_PRODUCER_ID = 22
    ADD_PARTITIONS_TO_TXN = 24
    ADD_OFFSETS_TO_TXN = 25
    END_TXN = 26
    TXN_OFFSET_COMMIT = 28


_REQUEST_HEAD = 12  # int32 length, int16 API key, int16 API version, int32 correlation id
_REPLY_HEAD = 8  # int32 length, int32 correlation id
_FOR_EVER = 1 << 62


class Conversation:
    """What is asked and answered on one connection.

    It costs a step a frame, whatever the frame's size. A stream that is not Kafka's is passed over from where that
    shows. Requests are kept until they are answered, which Kafka does in order.
    """

    def __init__(self) -> None:
        self._requests = _Frames(_REQUEST_HEAD)
        self._replies = _Frames(_REPLY_HEAD)
        self._asked: deque[tuple[bytes, int]] = deque()

    def ask(self, data: bytes) -> None:
        """Take note of the next bytes from the client."""
        for _, head in self._requests.feed(data):
            self._asked.append((head[8:12], int.from_bytes(head[4:6], "big")))

    def answer(self, data: bytes) -> Iterator[tuple[int, int]]:
        """Replies whose head ends in the next bytes from the server: where each begins in `data`, and its API's key.

        One that began in earlier bytes is said to begin at 0.
        """
        for start, head in self._replies.feed(data):
            while self._asked:  # a produce request that wants no reply (acks=0) is passed over
                correlation, api = self._asked.popleft()
                if correlation == head[4:8]:
                    yield start, api
                    break


class _Frames:
    """Finds the heads of frames, of `head_bytes` each, in a stream that comes in pieces."""

    def __init__(self, head_bytes: int) -> None:
        self._head_bytes = head_bytes
        self._head = b""
        self._body_left = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Where in `data` (0: or before) each frame begins whose head ends in it, and that head."""
        at = 0
        while at < len(data):
            if self._body_left:
                skipped = min(self._body_left, len(data) - at)
                self._body_left -= skipped
                at += skipped
                continue
            more = data[at : at + self._head_bytes - len(self._head)]
            self._head += more
            at += len(more)
            if len(self._head) == self._head_bytes:
                head, self._head = self._head, b""
                left = int.from_bytes(head[:4], "big", signed=True) + 4 - self._head_bytes
                self._body_left = left if left >= 0 else _FOR_EVER
                if left >= 0:
                    yield max(0, at - self._head_bytes), head
