"""The versions that a role's process serves: each on a thread of its own, begun and ended as the control topic says.

What fails in one version ends that one's thread alone. The process ends if it is the promoted one, as whoever started
it then starts it again; others are tried again by and by, and the promoted one goes on meanwhile.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from schemas.chunk import Place
from schemas.errors import Fatal, ManyrayError, Retry
from streams import clock
from streams.attempts import with_retries
from streams.compacted import Latest
from streams.control import check_begun, ray_in, topics_of
from streams.health import Health
from streams.metrics import ByVersion, Metrics
from streams.settings import Settings
from streams.topics import Topics, check_topics
from streams.versions import Ray, Served
from streams.watchdog import watch

_log = logging.getLogger("manyray.serving")

STOP_S = 40.0
"""For a version to end: what it has in hand is committed, and then it leaves its groups."""
AGAIN_S = 30.0
"""After which a version that failed is begun again, unless it is the promoted one."""
LOOK_S = 0.2
STARTING = "it is starting"


class Worker(Protocol):
    """What a role does for one version. `run` is called on a thread of its own, all else on any."""

    def run(self, stop: threading.Event) -> None:
        """Serve the version until `stop` is set.

        Raises:
            Fatal: it cannot go on.
        """
        ...

    def waits_for(self) -> str:
        """Why it does not serve its partitions now; empty when it does."""
        ...

    def processed(self) -> Mapping[Place, int]:
        """The next offset to be processed of each partition owned."""
        ...

    def beat(self) -> int:
        """A number that changes while it works at something that is part of none of them."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """What a worker is made of: settings that name the version's model, its topics and metrics, what it is."""

    settings: Settings
    topics: Topics
    metrics: Metrics
    ray: Callable[[], Ray]
    """The ray as it is now."""

    def is_shadow(self) -> bool:
        """Whether nobody waits for the version's embeddings now."""
        return self.ray().is_shadow(self.topics.version)


class _Thread:
    """A worker and its thread."""

    def __init__(self, version: str, make: Callable[[], Worker]) -> None:
        self.failure: ManyrayError | None = None
        self.is_told = False
        """Whether the failure was logged."""
        self.ended_s = 0.0
        self._version, self._make = version, make
        self._worker: Worker | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"version-{version}", daemon=True)
        self._thread.start()

    @property
    def is_ending(self) -> bool:
        """Whether it was told to stop, or fails: then it still has to give back what it has, which may take long."""
        return self._stop.is_set() or self.failure is not None

    def tell_to_stop(self) -> None:
        """Make it end; `join` waits for it."""
        self._stop.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for its end, and say whether it has ended."""
        self._thread.join(max(0.0, timeout_s))
        return not self._thread.is_alive()

    def waits_for(self) -> str:
        worker = self._worker
        return worker.waits_for() if worker else STARTING

    def processed(self) -> Mapping[Place, int]:
        worker = self._worker
        return worker.processed() if worker else {}

    def beat(self) -> int:
        worker = self._worker
        return worker.beat() if worker else 0

    def _run(self) -> None:
        try:
            self._worker = self._make()
            self._worker.run(self._stop)
        except Retry as error:
            self.failure = None if self._stop.is_set() else Fatal(str(error))
        except ManyrayError as error:
            self.failure = error
        except BaseException as error:  # a thread that dies unseen stalls its version for ever
            _log.debug("version %s", self._version, exc_info=True)
            self.failure = Fatal(f"version {self._version} failed: {type(error).__name__}: {error}")
        finally:
            self._worker = None
            self.ended_s = clock.monotonic_s()


class Serving:
    """The versions of a process. One thread calls `apply` and `stop_all`; any may ask."""

    def __init__(self, settings: Settings, metrics: ByVersion, make: Callable[[Part], Worker]) -> None:
        """`make` makes the worker of a version, on its thread."""
        self.ray = Ray()
        self._settings, self._metrics, self._make = settings, metrics, make
        self._threads: dict[str, _Thread] = {}

    def apply(self, ray: Ray) -> None:
        """Begin with versions that are new, end those that are gone, and see after those that failed.

        Raises:
            Fatal: one did not end in time.
        """
        self.ray = ray
        gone = [version for version in self._threads if version not in ray.names]
        self._end(gone)
        for version in gone:
            _log.info("version %s is served no longer", version)
        for served in ray.versions:
            thread = self._threads.get(served.version)
            if thread is None:
                self._begin(served)
            elif thread.failure is not None and served.version != ray.promoted:
                self._begin_again(served, thread, thread.failure)

    @property
    def has_failed(self) -> bool:
        """Whether the process is to end, as the promoted version does."""
        return self._promoted is not None and self._promoted.is_ending

    def stop_all(self) -> None:
        """End all of them at once.

        Raises:
            Fatal: one did not end in time, or the promoted one had failed.
        """
        promoted = self._promoted
        self._end(self._threads)
        if promoted is not None and promoted.failure is not None:
            raise promoted.failure

    def waits_for(self) -> str:
        """Why the promoted version is not served now; others may come later."""
        return self._promoted.waits_for() if self._promoted else STARTING

    def processed(self) -> dict[Place, int]:
        """The next offset to be processed of each partition, of all versions; of one that several read, the least."""
        offsets: dict[Place, int] = {}
        for thread in self._threads.values():
            for place, offset in thread.processed().items():
                offsets[place] = min(offset, offsets.get(place, offset))
        return offsets

    def beat(self) -> int:
        """A number that changes while one of them works at something that takes long."""
        return sum(thread.beat() for thread in self._threads.values())

    def _begin(self, served: Served) -> None:
        topics, metrics = topics_of(self._settings, served), self._metrics.of(served.version)

        def make() -> Worker:
            check_topics(self._settings, served.version)
            return self._make(Part(served.settings(self._settings), topics, metrics, lambda: self.ray))

        thread = _Thread(served.version, make)
        self._threads = {**self._threads, served.version: thread}  # as a whole: others may be reading it

    @property
    def _promoted(self) -> _Thread | None:
        """The version without which the process is nothing."""
        return self._threads.get(self.ray.promoted)

    def _begin_again(self, served: Served, thread: _Thread, failure: ManyrayError) -> None:
        """Try a version that failed, after a pause."""
        if not thread.is_told:
            thread.is_told = True
            _log.error(
                "version %s is not served here (%s); others go on, and it is tried again every %.0f s",
                served.version,
                failure,
                AGAIN_S,
            )
        if thread.ended_s + AGAIN_S <= clock.monotonic_s():
            self._forget([served.version])
            self._begin(served)

    def _end(self, versions: Iterable[str]) -> None:
        ending = {version: self._threads[version] for version in versions}
        for thread in ending.values():
            thread.tell_to_stop()
        deadline_s = clock.monotonic_s() + STOP_S
        for version, thread in ending.items():
            if not thread.join(deadline_s - clock.monotonic_s()):
                raise Fatal(f"version {version} did not end in {STOP_S:.0f} s: this process is to be started again")
        self._forget(ending)

    def _forget(self, versions: Iterable[str]) -> None:
        self._threads = {version: thread for version, thread in self._threads.items() if version not in versions}
        for version in versions:
            self._metrics.forget(version)


def serve(settings: Settings, health: Health, metrics: ByVersion, make: Callable[[Part], Worker]) -> None:
    """Serve a ray's versions, as the control topic has them, until `health.stop` is set.

    Raises:
        Fatal: the promoted one cannot be served, or the control topic cannot be read.
    """
    topic = Topics.of(settings, "").control
    serving = Serving(settings, metrics, make)
    told = ""
    with closing(Latest(settings, topic)) as latest:
        try:
            with_retries(latest.catch_up, health.stop)
            health.waits_for = serving.waits_for
            ray = check_begun(ray_in(latest), topic)
            watch(settings, health, serving.processed, beat=serving.beat)
            while not (health.stop.is_set() or serving.has_failed):
                serving.apply(ray)
                ready = "" if serving.waits_for() else f"ready: {describe(ray)}"
                if ready and ready != told:
                    _log.info("%s", told := ready)
                if latest.hear(LOOK_S):
                    ray = ray_in(latest)
        finally:
            health.stop.set()  # after a failure too: what is left has the time of a stop
            serving.stop_all()


def describe(ray: Ray) -> str:
    """The versions in words."""
    others = [version for version in ray.names if version != ray.promoted]
    return f"serves version {ray.promoted}" + (f", beside it {', '.join(others)}" if others else "")
