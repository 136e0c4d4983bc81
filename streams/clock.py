"""Time and randomness: the only place that reads them, so that a reader knows where a run is not repeatable."""

import secrets
import time

now_s = time.time  # noqa: TID251 - seconds since the epoch, for records and people
monotonic_s = time.monotonic  # noqa: TID251 - seconds, for waits and ages
perf_s = time.perf_counter  # noqa: TID251 - seconds, for costs
sleep_s = time.sleep  # noqa: TID251
cpu_s = time.process_time  # seconds of CPU that this process has used


def now_ms() -> int:
    """Milliseconds since the epoch, as Kafka counts them."""
    return int(now_s() * 1000)


def random_below(limit: int) -> int:
    """A number from 0 up to, but not including, `limit`."""
    return secrets.randbelow(limit)


def random_id() -> str:
    """96 random bits as 24 hexadecimal characters: a name that nothing else has."""
    return secrets.token_hex(12)


def utc_stamp() -> str:
    """The time to the second as 16 characters, such as 20261121T142500Z, that sort as time goes: for names of files."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s()))
