"""Whether a version is served, and what is under way in it, asked of the brokers."""

import threading
from contextlib import ExitStack, closing

from confluent_kafka import KafkaException

from schemas.errors import Fatal, Retry
from streams import clients
from streams.attempts import with_retries
from streams.checkpoint import read_progress
from streams.drain import Drain, Stage, committed_in
from streams.readers import ASK_S
from streams.settings import Settings
from streams.topics import Topics

LOOK_S = 0.3


def check_served(settings: Settings, topics: Topics, name: str) -> None:
    """Refuse what no dedup or no encoder serves: nothing would come of it.

    Raises:
        Fatal: as said.
    """
    members = members_of(settings, topics)
    for role, group in (("dedup", topics.dedup_group), ("encode", topics.encode_group)):
        if not members[group]:
            raise Fatal(f"no {role} serves {name} now: start the roles, or see in the log of {role} what is wrong")


def members_of(settings: Settings, topics: Topics) -> dict[str, int]:
    """How many members each of a version's groups has.

    Raises:
        Retry: the brokers did not answer.
    """
    groups = [topics.dedup_group, topics.encode_group, topics.backfill_group]
    admin = clients.admin_client(settings)  # its end would be that of what it was asked for
    described = admin.describe_consumer_groups(groups)
    try:
        return {group: len(future.result(ASK_S).members or []) for group, future in described.items()}
    except KafkaException as error:
        raise Retry(f"consumer groups could not be asked for: {error.args[0].str()}") from None


def await_out(settings: Settings, topics: Topics, stop: threading.Event) -> bool:
    """Wait until all that lies in `lookups` has come out of a version; say whether it has, or it was told to stop."""
    partitions = range(settings.partitions)

    def looked_up() -> dict[int, int]:
        return {at: read_progress(settings, topics.checkpoints, at).lookups_offset for at in partitions}

    with ExitStack() as held:

        def encoded(topic: str, group: str) -> Stage:
            consumer = held.enter_context(closing(clients.consumer(settings, group)))
            return topic, lambda: committed_in(consumer, topic, partitions)

        stages = [
            (topics.lookups, looked_up),
            encoded(topics.misses, topics.encode_group),
            encoded(topics.backfill_misses, topics.backfill_group),
        ]
        drain = held.enter_context(closing(Drain(settings, stages)))
        while not with_retries(drain.is_done, stop):
            if stop.wait(LOOK_S):
                return False
    return True
