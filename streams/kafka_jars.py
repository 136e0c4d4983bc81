"""Apache Kafka's own jars, downloaded once from their Maven coordinates and checked against pinned digests.

`kafka_jars.properties` pins every jar that Kafka needs by its SHA-256, so what runs here is byte for byte what was
tested. To move to another version: change `KAFKA_VERSION`, and write what `lock()` returns to that file.
"""

import fcntl
import hashlib
import importlib.resources
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from schemas.errors import Fatal

KAFKA_VERSION = "4.2.2"  # 4.3.0 and 4.3.1 may lose the end of a transaction: KAFKA-20734, DECISIONS 32
KAFKA = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}"
# Kafka's pom names no logger that would write Log4j's files (its own distribution adds one): without it no log at all.
# Its version is that of log4j-core.
LOGGER = "org.apache.logging.log4j:log4j-slf4j-impl"

_HEAD = """\
# What the embedded broker runs: group/artifact/version=SHA-256 of the jar, as Maven Central publishes it.
# Made by `python -c "from streams.kafka_jars import lock; print(lock(), end='')"`; do not edit by hand.
"""
_DOWNLOADS = 8  # at a time
_ATTEMPTS = 2  # a jar cut short on its way is fetched once more


def resolve_jars(cache_dir: Path | None = None, progress: Callable[[str], None] = lambda _: None) -> str:
    """Return the class path of Apache Kafka, `os.pathsep` between its jars, after downloading what is missing.

    The jars (45 MB) stay in `cache_dir` (default: `default_cache_dir()`), in a folder named by Kafka's version. Every
    call reads every jar there and compares its SHA-256 with the one pinned in `kafka_jars.properties`; a jar that is
    missing or differs is downloaded anew and compared again. Nothing is asked of the network when all are right.
    Two processes may call this at once: one downloads, the other waits for it. `progress` gets one line per step.

    Raises `Fatal` if a jar cannot be downloaded, or is not the one that was pinned.
    """
    folder = kafka_folder(cache_dir)
    digests = pinned()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        for _ in range(_ATTEMPTS):
            wrong = damaged(folder, digests)
            if not wrong:
                break
            progress(f"downloading Apache Kafka {KAFKA_VERSION}: {len(wrong)} jars to {folder}")
            for coordinate in wrong:
                (folder / jar_path(coordinate)).unlink(missing_ok=True)
            _download(folder, wrong)
        else:
            if wrong := damaged(folder, digests):
                raise Fatal(
                    f"cannot use Apache Kafka {KAFKA_VERSION}: {wrong[0]} as downloaded is not the jar this release "
                    f"was tested with: check the Maven mirror, or set bootstrap_servers to a cluster of yours"
                )
    return os.pathsep.join(str(folder / jar_path(coordinate)) for coordinate in digests)


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/manyray`, or `~/.cache/manyray`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "manyray"


def kafka_folder(cache_dir: Path | None = None) -> Path:
    """Where the jars are kept, in `cache_dir` or `default_cache_dir()`: one folder for each version of Kafka."""
    return (cache_dir or default_cache_dir()).resolve() / f"kafka-{KAFKA_VERSION}"


def pinned() -> dict[str, str]:
    """The pinned jars: `group/artifact/version` to SHA-256 in hexadecimal."""
    text = (importlib.resources.files("streams") / "kafka_jars.properties").read_text("ascii")
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def jar_path(coordinate: str) -> str:
    """Where Maven's layout puts the jar of `group/artifact/version`.

    >>> jar_path("org.slf4j/slf4j-api/1.7.36")
    'org/slf4j/slf4j-api/1.7.36/slf4j-api-1.7.36.jar'
    """
    group, artifact, version = coordinate.split("/")
    return f"{group.replace('.', '/')}/{artifact}/{version}/{artifact}-{version}.jar"


def damaged(folder: Path, digests: Mapping[str, str]) -> list[str]:
    """The coordinates of `digests` whose jar in `folder` is missing or is not the one pinned."""
    return [
        coordinate
        for coordinate, digest in digests.items()
        if not (jar := folder / jar_path(coordinate)).is_file() or sha256(jar) != digest
    ]


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock() -> str:
    """The text of `kafka_jars.properties` for `KAFKA` and `LOGGER`, resolved and downloaded now: for maintainers."""
    import tempfile  # noqa: PLC0415 - maintainers only

    from jgo.maven import MavenContext  # noqa: PLC0415 - 0.2 s to import

    with tempfile.TemporaryDirectory() as folder:
        context = MavenContext(repo_cache=Path(folder))
        # The logger is not resolved along with Kafka: its pom would then rule Kafka's own versions.
        roots, others = context.resolver.resolve([context.create_dependency(KAFKA)])
        core = next(one.version for one in others if one.artifactId == "log4j-core")
        wanted = [*roots, *others, context.create_dependency(f"{LOGGER}:{core}")]
        coordinates = sorted(f"{one.groupId}/{one.artifactId}/{one.version}" for one in wanted)
        _download(Path(folder), coordinates)
        return _HEAD + "".join(f"{one}={sha256(Path(folder) / jar_path(one))}\n" for one in coordinates)


def _download(folder: Path, coordinates: Sequence[str]) -> None:
    """Download to `folder`, in Maven's layout, from Maven Central or what jgo's own settings put in its place."""
    from jgo.config import GlobalSettings  # noqa: PLC0415 - 0.2 s to import, and needed once
    from jgo.constants import MAVEN_CENTRAL_URL  # noqa: PLC0415
    from jgo.maven import MavenContext  # noqa: PLC0415

    repositories = {"central": MAVEN_CENTRAL_URL, **GlobalSettings.load().repositories}
    context = MavenContext(repo_cache=folder, remote_repos=repositories)

    def fetch(coordinate: str) -> None:
        context.create_dependency(coordinate.replace("/", ":")).artifact.resolve()

    try:
        with ThreadPoolExecutor(_DOWNLOADS) as pool:
            list(pool.map(fetch, coordinates))
    except Exception as error:  # what requests, the file system and jgo itself raise: all of it means, no jar
        raise Fatal(
            f"cannot download Apache Kafka {KAFKA_VERSION}: check the network, name a Maven mirror as `central` under "
            f"[repositories] in ~/.config/jgo.conf, or set bootstrap_servers to a cluster of yours ({error})"
        ) from error
