"""Who reads a topic: consumer groups by what they have committed there, asked of the brokers."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException
from confluent_kafka.admin import (
    AdminClient,
    ConsumerGroupListing,  # pyright: ignore[reportPrivateImportUsage]
)

from schemas.errors import Retry
from streams import clients
from streams.settings import Settings
from streams.topics import list_partitions

ASK_S = 30.0


@dataclass(frozen=True, slots=True)
class Reader:
    """A consumer group of a topic.

    members: those that are assigned a partition of it now. lag: offsets behind what was committed, transactions' ends
    among them, of the partitions that it has committed in. offsets: what it has committed, by partition.
    """

    group: str
    members: int
    lag: int
    offsets: dict[int, int]


def find_readers(settings: Settings, topic: str) -> list[Reader]:
    """The groups that have members on a topic, or have committed an offset in it, in the order of their names.

    Raises:
        Retry: the brokers did not answer in time.
        Fatal: no broker answers.
    """
    admin = clients.admin_client(settings)
    partitions = list_partitions(settings).get(topic, 0)
    with closing(clients.reader(settings)) as reader:
        ends = {at: clients.watermarks(reader, topic, at)[1] for at in range(partitions)}
    try:
        listed = admin.list_consumer_groups(request_timeout=ASK_S).result()
        groups: list[ConsumerGroupListing] = listed.valid or []
        found = [_reader(admin, group.group_id, topic, ends) for group in groups]
    except KafkaException as error:
        raise Retry(f"consumer groups could not be asked for: {error.args[0].str()}") from None
    return sorted((one for one in found if one is not None), key=lambda one: one.group)


def _reader(admin: AdminClient, group: str, topic: str, ends: Mapping[int, int]) -> Reader | None:
    """What a group has to do with a topic; None for nothing."""
    asked = [ConsumerGroupTopicPartitions(group)]
    committed = admin.list_consumer_group_offsets(asked, request_timeout=ASK_S)[group].result()
    offsets = {one.partition: one.offset for one in committed.topic_partitions or [] if one.topic == topic}
    offsets = {at: offset for at, offset in offsets.items() if offset >= 0 and at in ends}
    described = admin.describe_consumer_groups([group], request_timeout=ASK_S)[group].result()
    members = sum(
        any(place.topic == topic for place in member.assignment.topic_partitions) for member in described.members or []
    )
    if not offsets and not members:
        return None
    return Reader(group, members, sum(max(0, ends[at] - offset) for at, offset in offsets.items()), offsets)
