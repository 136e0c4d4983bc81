"""Laws of the topics: what is missing or wrong is found, named, and told how to mend."""

import pytest
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
)

from schemas.errors import Fatal
from streams import clients
from streams.ports import choose_ports
from streams.settings import Settings, load_settings
from streams.topics import TopicPlan, Topics, check_topics, compare, create_topics, find_problems, plan_topics
from tests.waiting import wait_until

VERSION = "0123456789ab"
PLANS = plan_topics(Settings(), VERSION)
COUNTS = {plan.name: plan.partitions for plan in PLANS}


def test_the_plan_has_every_topic_by_its_name():
    """The names are a contract with users' programs and other processes."""
    assert [plan.name for plan in PLANS] == [
        "posts",
        "rejected",
        "control.textray",
        "replays.textray",
        "lookups.textray",
        f"misses.textray.{VERSION}",
        f"misses.textray.{VERSION}.backfill",
        f"vectors.textray.{VERSION}",
        f"checkpoints.textray.{VERSION}",
        f"embeddings.textray.{VERSION}",
    ]
    topics = Topics.of(Settings(), VERSION)
    named = (topics.rejected, topics.control, topics.replays, topics.lookups, topics.misses, topics.backfill_misses)
    named += (topics.vectors, topics.checkpoints, topics.embeddings)
    assert [*topics.posts, *named] == [plan.name for plan in PLANS]


def test_what_has_one_last_value_alone_is_compacted():
    """The last checkpoint must outlive any time; everything else is a stream."""
    compacted = [plan.name for plan in PLANS if plan.config.get("cleanup.policy") == "compact"]
    assert compacted == ["control.textray", "replays.textray", f"checkpoints.textray.{VERSION}"]
    assert all("retention.ms" not in plan.config for plan in PLANS if plan.config.get("cleanup.policy") == "compact")


def test_settings_shape_the_plan():
    """Partitions, but of what is read whole, replicas, ray and input topics are those set."""
    plans = plan_topics(load_settings(partitions=7, replication=3, ray="other", posts_topics=("a", "b")), VERSION)
    assert {plan.name for plan in plans if plan.partitions != 7} == {"control.other", "replays.other"}
    assert {plan.replication for plan in plans} == {3}
    assert [plan.name for plan in plans][:2] == ["a", "b"]
    assert "lookups.other" in {plan.name for plan in plans}


def test_topics_as_planned_are_no_problem():
    """Also where the cluster does not tell their configuration."""
    assert compare(PLANS, COUNTS, {}) == []
    assert compare(PLANS, COUNTS, {plan.name: {"cleanup.policy": "delete", **plan.config} for plan in PLANS}) == []


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_each_topic_that_is_missing_is_named(plan):
    """One line, with the command that creates it."""
    there = {name: count for name, count in COUNTS.items() if name != plan.name}
    assert compare(PLANS, there, {}) == [f"topic {plan.name} is missing: run `manyray topics create`"]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_a_wrong_count_is_named_with_both_numbers(plan):
    """And with both ways out; users' own topics may have any number."""
    problems = compare(PLANS, {**COUNTS, plan.name: 9}, {})
    if plan.name.partition(".")[0] in ("posts", "rejected", "embeddings"):
        assert problems == []
    else:
        (problem,) = problems
        one = plan.name.startswith(("control.", "replays."))
        wanted = "it needs 1: delete" if one else "the setting partitions is 4: set partitions = 9, or delete the topic"
        assert f"topic {plan.name} has 9 partitions and {wanted}" in problem


def test_a_wrong_cleanup_policy_is_named():
    """Checkpoints that are deleted by age, or vectors that are compacted, would lose what they are for."""
    vectors, checkpoints = f"vectors.textray.{VERSION}", f"checkpoints.textray.{VERSION}"
    policies = {checkpoints: {"cleanup.policy": "delete"}, vectors: {"cleanup.policy": "compact"}}
    first, second = compare(PLANS, COUNTS, policies)
    assert f"{vectors} has cleanup.policy=compact, it needs delete" in first
    assert f"{checkpoints} has cleanup.policy=delete, it needs compact" in second
    assert all("kafka-configs --alter" in problem for problem in (first, second))


def test_the_policy_of_a_users_own_topic_is_theirs():
    """Posts are often compacted by id; how long they are kept changes nothing for the pipeline."""
    assert compare(PLANS, COUNTS, {"posts": {"cleanup.policy": "compact"}}) == []


def test_a_topic_that_takes_too_small_records_is_named():
    """A bad post that does not fit `rejected` would stop ingest for good; more room than is planned does no harm."""
    (problem,) = compare(PLANS, COUNTS, {"rejected": {"max.message.bytes": "1048588"}})
    assert problem.startswith("topic rejected has max.message.bytes=1048588, it needs 67108864: kafka-configs ")
    assert problem.endswith("--add-config max.message.bytes=67108864")
    assert compare(PLANS, COUNTS, {"rejected": {"max.message.bytes": "67108865"}}) == []


def test_problems_come_in_the_order_of_the_flow():
    """All of them, the first cause first."""
    plans = [TopicPlan(name, 4, 1, "") for name in ("a", "b", "c")]
    assert [problem.split()[1] for problem in compare(plans, {"b": 2}, {})] == ["a", "b", "c"]


def await_problem(settings: Settings, part: str) -> None:
    """Until the broker shows what was just changed, which it does a little after it has agreed to it."""
    wait_until(lambda: any(part in problem for problem in find_problems(settings, VERSION)), f"a problem says {part}")


@pytest.mark.broker
def test_created_topics_are_as_checked(settings):
    """What `create` makes has no problem; creating again makes nothing and harms nothing."""
    created = create_topics(settings, VERSION)
    planned = [plan.name for plan in plan_topics(settings, VERSION)]
    assert set(planned) - {"rejected"} <= set(created) <= set(planned)
    assert find_problems(settings, VERSION) == []
    check_topics(settings, VERSION)
    assert create_topics(settings, VERSION) == []


@pytest.mark.broker
def test_what_was_asked_for_is_what_the_broker_has(settings):
    """Every planned property stands in the topic's configuration."""
    create_topics(settings, VERSION)
    plans = plan_topics(settings, VERSION)
    resources = {ConfigResource(ConfigResource.Type.TOPIC, plan.name): plan for plan in plans}
    admin = clients.admin_client(settings)
    for resource, future in admin.describe_configs(list(resources)).items():
        found = future.result(30)
        wanted = resources[ConfigResource(ConfigResource.Type.TOPIC, resource.name)].config
        assert {name: found[name].value for name in wanted} == wanted


@pytest.mark.broker
def test_missing_topics_stop_the_start(settings):
    """In one line: the first one, the remedy, and how many more there are."""
    expected = len(find_problems(settings, VERSION)) - 1
    with pytest.raises(Fatal, match=f"is missing: run `manyray topics create`.*and {expected} more") as caught:
        check_topics(settings, VERSION)
    assert "\n" not in str(caught.value)


@pytest.mark.broker
def test_another_number_of_partitions_stops_the_start(settings):
    """Tables are co-partitioned: settings and all inner topics must agree. The users' own topics need not,
    nor those that only users read.
    """
    create_topics(settings, VERSION)
    admin = clients.admin_client(settings)
    grown = [NewPartitions(name, 6) for name in (f"lookups.{settings.ray}", settings.posts_topics[0])]
    for future in admin.create_partitions(grown, operation_timeout=30).values():
        future.result(30)
    await_problem(settings, "has 6 partitions")
    with pytest.raises(Fatal, match=rf"lookups\.{settings.ray} has 6 partitions .* is 4: set partitions = 6"):
        check_topics(settings, VERSION)
    more = settings.model_copy(update={"partitions": 6})
    wrong = [problem.split()[1] for problem in find_problems(more, VERSION)]
    assert set(wrong) == {Topics.of(more, VERSION).backfill_misses} | {
        f"{name}.{settings.ray}.{VERSION}" for name in ("misses", "vectors", "checkpoints")
    }


@pytest.mark.broker
def test_checkpoints_that_are_not_compacted_stop_the_start(settings):
    """Retention would delete the checkpoint of a quiet partition."""
    create_topics(settings, VERSION)
    name = f"checkpoints.{settings.ray}.{VERSION}"
    entry = ConfigEntry("cleanup.policy", "delete", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=[entry])
    admin = clients.admin_client(settings)
    for future in admin.incremental_alter_configs([resource]).values():
        future.result(30)
    await_problem(settings, "cleanup.policy=delete")
    with pytest.raises(Fatal, match=f"{name} has cleanup.policy=delete, it needs compact"):
        check_topics(settings, VERSION)


@pytest.mark.broker
def test_too_many_replicas_are_one_line(settings):
    """A cluster with fewer brokers refuses: the setting is named."""
    with pytest.raises(Fatal, match=r"cannot be created: .*; check replication") as caught:
        create_topics(settings.model_copy(update={"replication": 5}), VERSION)
    assert "\n" not in str(caught.value)


@pytest.mark.broker
def test_the_admin_client_is_the_users_own(settings):
    """Properties of [kafka] reach it."""
    assert isinstance(clients.admin_client(settings.model_copy(update={"kafka": {"client.id": "mine"}})), AdminClient)


@pytest.mark.timeout(60)
def test_no_broker_is_one_line(tmp_path):
    """It says where it looked, and what to do."""
    (port,) = choose_ports([0])
    settings = load_settings(bootstrap_servers=f"127.0.0.1:{port}", data_dir=tmp_path)
    with pytest.raises(Fatal, match=f"no Kafka broker answers at 127.0.0.1:{port}: start it, or set"):
        find_problems(settings, VERSION)
