"""The topics of a ray: their names, what each needs, creating and checking them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (
    ConfigResource,  # pyright: ignore[reportPrivateImportUsage]
    NewTopic,  # pyright: ignore[reportPrivateImportUsage]
)

from schemas.errors import Fatal
from schemas.internal_pb2 import Standing
from schemas.vectors import VectorForm
from streams import clients, clock
from streams.settings import Settings

CREATE_TIMEOUT_S = 30.0
LIST_TIMEOUT_S = 5.0
RECORD_BYTES_MAX = 2_097_152  # more than an internal record has: chunks are the largest, see `packing`
# The limit of `posts` is on compressed bytes: what comes out of a megabyte may be much larger, and a bad post that did
# not fit `rejected` would stop ingest for ever.
REJECTED_BYTES_MAX = clients.MESSAGE_BYTES_MAX
_BYTES_MAX, _POLICY = "max.message.bytes", "cleanup.policy"
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """What one topic has to be."""

    name: str
    partitions: int
    replication: int
    purpose: str
    config: dict[str, str] = field(default_factory=dict[str, str])
    is_ours: bool = True
    """Whether only stages use it; of others users may choose partitions and policy, as nothing is co-partitioned."""
    is_single: bool = False
    """Whether it has one partition whatever the settings."""


@dataclass(frozen=True, slots=True)
class Topics:
    """The names of the topics of a ray and one of its versions, and the form of its vectors.

    All rays share those of posts and `rejected`, and all versions of a ray `lookups`, `replays` and `control`.
    """

    ray: str
    version: str
    posts: tuple[str, ...]
    backfill_posts: tuple[str, ...] = ()
    form: VectorForm = field(default_factory=VectorForm)

    @property
    def all_posts(self) -> tuple[str, ...]:
        """Those of a backfill come last."""
        return self.posts + self.backfill_posts

    @property
    def lookups(self) -> str:
        """Chunks of posts on their way to the table."""
        return f"lookups.{self.ray}"

    @property
    def misses(self) -> str:
        """Chunks of posts whose vector the table does not hold."""
        return f"misses.{self.ray}.{self.version}"

    @property
    def backfill_misses(self) -> str:
        """Such chunks of posts of a backfill, which are computed after the others."""
        return f"misses.{self.ray}.{self.version}.backfill"

    @property
    def vectors(self) -> str:
        """Computed vectors: the table's changelog."""
        return f"vectors.{self.ray}.{self.version}"

    @property
    def checkpoints(self) -> str:
        """How far dedup got in each partition."""
        return f"checkpoints.{self.ray}.{self.version}"

    @property
    def control(self) -> str:
        """Which versions the ray has, and what each is to it."""
        return f"control.{self.ray}"

    @property
    def replays(self) -> str:
        """What replays were asked for, and how far each got."""
        return f"replays.{self.ray}"

    @property
    def dedup_group(self) -> str:
        """The consumer group of dedup."""
        return f"manyray.dedup.{self.ray}.{self.version}"

    @property
    def encode_group(self) -> str:
        """The consumer group of encode."""
        return f"manyray.encode.{self.ray}.{self.version}"

    @property
    def backfill_group(self) -> str:
        """That of its lane for backfills."""
        return f"{self.encode_group}.backfill"

    @property
    def embeddings(self) -> str:
        """The output."""
        return f"embeddings.{self.ray}.{self.version}"

    @property
    def mirror(self) -> str:
        """What of the output is of the bare name, whatever version that means; if it is switched on."""
        return f"embeddings.{self.ray}"

    def outputs(self, standing: Standing) -> tuple[str, ...]:
        """Where embeddings go that were made while the version stands so."""
        return (self.embeddings, self.mirror) if standing.mirrored else (self.embeddings,)

    @property
    def rejected(self) -> str:
        """Bad posts, untouched, with the reason in headers."""
        return "rejected"

    @classmethod
    def of(cls, settings: Settings, version: str, form: VectorForm | None = None) -> "Topics":
        """The topics that these settings name; vectors are float32 unless another form is given."""
        return cls(settings.ray, version, settings.posts_topics, settings.backfill_topics, form or VectorForm())


def plan_topics(settings: Settings, *versions: str) -> list[TopicPlan]:
    """Every topic that the pipeline needs for some versions of its ray: first those that all versions share.

    The empty name among the versions stands for the mirror.
    """
    topics = Topics.of(settings, "")
    # By the brokers' clock, not by those of roles: a record with a wrong time is refused, or deleted at once.
    theirs = {"message.timestamp.type": "LogAppendTime"}
    size = {_BYTES_MAX: str(RECORD_BYTES_MAX), **theirs}
    # Records that are read once by our own stages need to outlive an outage, not the week that is Kafka's default.
    passing = {**size, "retention.ms": str(3 * _DAY_MS)}
    rejected = {_BYTES_MAX: str(REJECTED_BYTES_MAX), **theirs}

    # Small segments, compacted early: who begins reads it whole.
    latest = {_POLICY: "compact", "segment.bytes": "1048576", "min.cleanable.dirty.ratio": "0.1", **theirs}

    def plan(name: str, purpose: str, config: dict[str, str] | None = None, *, is_ours: bool = True) -> TopicPlan:
        return TopicPlan(name, settings.partitions, settings.replication, purpose, config or {}, is_ours)

    def single(name: str, purpose: str) -> TopicPlan:
        return TopicPlan(name, 1, settings.replication, purpose, latest, is_single=True)

    def of_version(own: Topics) -> list[TopicPlan]:
        if not own.version:
            return [plan(own.mirror, "embeddings of the bare name", size, is_ours=False)]
        return [
            plan(own.misses, "posts to be encoded", passing),
            plan(own.backfill_misses, "posts of a backfill to be encoded, after the others", passing),
            plan(own.vectors, "computed vectors, the table's changelog", {**size, "retention.ms": str(30 * _DAY_MS)}),
            plan(own.checkpoints, "how far dedup got", latest),
            plan(own.embeddings, "embeddings, as users read them", size, is_ours=False),
        ]

    return [
        *(plan(name, "posts, as users write them", is_ours=False) for name in topics.posts),
        *(plan(name, "posts of a backfill, as users write them", is_ours=False) for name in topics.backfill_posts),
        plan(topics.rejected, "bad posts with the reason", rejected, is_ours=False),
        single(topics.control, "the ray's versions, and what each is to it"),
        single(topics.replays, "replays, and how far each got"),
        plan(topics.lookups, "posts on their way to the tables", passing),
        *(each for version in versions for each in of_version(Topics.of(settings, version))),
    ]


def list_partitions(settings: Settings) -> dict[str, int]:
    """The partition count of every topic that can be seen, by name.

    Raises:
        Fatal: no broker answers, or they refuse us.
    """
    heard: list[KafkaError] = []
    admin = clients.admin_client(settings, heard.append)
    try:
        topics = admin.list_topics(timeout=LIST_TIMEOUT_S).topics
    except KafkaException:
        admin.poll(0)  # lets it say what it heard from the brokers
        raise clients.no_broker(settings, heard) from None
    return {name: len(topic.partitions) for name, topic in topics.items() if topic.error is None}


def create_topics(settings: Settings, *versions: str) -> list[str]:
    """Create the topics that are missing and return their names; those that exist are left as they are.

    Returns when clients can see them.

    Raises:
        Fatal: no broker answers, or it refuses.
    """
    existing = list_partitions(settings)
    missing = [plan for plan in plan_topics(settings, *versions) if plan.name not in existing]
    if not missing:
        return []
    requests = [NewTopic(plan.name, plan.partitions, plan.replication, config=plan.config) for plan in missing]
    admin = clients.admin_client(settings)  # its end would be that of what it was asked for
    for name, future in admin.create_topics(requests, operation_timeout=CREATE_TIMEOUT_S).items():
        try:
            future.result(CREATE_TIMEOUT_S)
        except KafkaException as error:
            cause: KafkaError = error.args[0]
            if cause.code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another process was quicker
                raise Fatal(f"topic {name} cannot be created: {cause.str()}; check replication and the ACLs") from None
    names = [plan.name for plan in missing]
    # The controller has made them; the brokers tell clients of them a moment later.
    deadline_s = clock.monotonic_s() + CREATE_TIMEOUT_S
    while not set(names) <= list_partitions(settings).keys():
        if clock.monotonic_s() > deadline_s:
            raise Fatal(f"topics were created, but brokers do not show them after {CREATE_TIMEOUT_S:.0f} s: try again")
        clock.sleep_s(0.05)
    return names


def find_problems(settings: Settings, *versions: str) -> list[str]:
    """What is wrong with the topics, a line each with its remedy; empty when all is well.

    Raises:
        Fatal: no broker answers.
    """
    plans = plan_topics(settings, *versions)
    existing = list_partitions(settings)
    return compare(plans, existing, _configs(settings, plans, existing))


def compare(plans: Sequence[TopicPlan], partitions: dict[str, int], configs: dict[str, dict[str, str]]) -> list[str]:
    """The differences between plans and what is there: `partitions` and `configs` by topic name.

    Of a topic without its config, as where the cluster does not let us read it, the check is not ours.
    """
    problems: list[str] = []
    for plan in plans:
        found = partitions.get(plan.name)
        if found is None:
            problems.append(f"topic {plan.name} is missing: run `manyray topics create`")
        elif found != plan.partitions and plan.is_ours:
            remedy = (
                "it needs 1: delete it"
                if plan.is_single
                else f"the setting partitions is {plan.partitions}: set partitions = {found}, or delete the topic"
            )
            problems.append(f"topic {plan.name} has {found} partitions and {remedy} and run `manyray topics create`")
        wanted = {_POLICY: plan.config.get(_POLICY, "delete"), _BYTES_MAX: plan.config.get(_BYTES_MAX, "0")}
        config = wanted | configs.get(plan.name, {})
        wrong = [_POLICY] if plan.is_ours and config[_POLICY] != wanted[_POLICY] else []
        wrong += [_BYTES_MAX] if int(config[_BYTES_MAX]) < int(wanted[_BYTES_MAX]) else []
        problems += [
            f"topic {plan.name} has {name}={config[name]}, it needs {wanted[name]}: "
            f"kafka-configs --alter --topic {plan.name} --add-config {name}={wanted[name]}"
            for name in wrong
        ]
    return problems


def check_topics(settings: Settings, *versions: str) -> None:
    """Refuse to start on topics that are missing or miscounted.

    Raises:
        Fatal: the first problem, and how many more there are.
    """
    problems = find_problems(settings, *versions)
    if problems:
        more = f" (and {len(problems) - 1} more: run `manyray topics check`)" if len(problems) > 1 else ""
        raise Fatal(problems[0] + more)


def _configs(settings: Settings, plans: Sequence[TopicPlan], existing: dict[str, int]) -> dict[str, dict[str, str]]:
    """What is configured by topic; nothing of a topic whose configuration the cluster does not let us read."""
    resources = [ConfigResource(ConfigResource.Type.TOPIC, plan.name) for plan in plans if plan.name in existing]
    configs: dict[str, dict[str, str]] = {}
    admin = clients.admin_client(settings)
    for resource, future in admin.describe_configs(resources).items() if resources else ():
        try:
            found = future.result(CREATE_TIMEOUT_S)
        except KafkaException:
            continue
        configs[resource.name] = {name: entry.value for name, entry in found.items()}
    return configs
