"""What tests of replays share."""

import threading
from collections import Counter
from dataclasses import replace

from manyray.replaying import Wanted, begin_replay, run_replay
from schemas.public_pb2 import Embedding
from streams.jobs import Done, Job, Jobs
from streams.settings import Settings
from tests.oracle import read_records, topics_of


def into(settings: Settings, topic: str) -> Settings:
    """For who sends to another topic."""
    return settings.model_copy(update={"posts_topics": (topic,)})


def begin(settings: Settings, source: object, name: str, **how: object) -> Job:
    """A job of all that the source holds, unless told otherwise."""
    return begin_replay(settings, replace(Wanted(str(source), settings.ray, name=name), **how))  # type: ignore[arg-type]


def run(settings: Settings, job: Job) -> Done:
    """Run it to its end."""
    run_replay(settings, job.name, threading.Event())
    return read(settings, job.name)


def read(settings: Settings, name: str) -> Done:
    """How far it got."""
    return Jobs(settings).read()[name][1]


def embeddings(settings: Settings, job: str) -> list[Embedding]:
    """What came out of a job; of none, as it came."""
    records = read_records(settings, topics_of(settings).embeddings)
    found = [Embedding.FromString(record.value() or b"") for record in records]
    return [embedding for embedding in found if embedding.job == job]


def embedded(settings: Settings, job: str) -> Counter[str]:
    """How often each post came out of a job."""
    return Counter(embedding.post_id for embedding in embeddings(settings, job))
