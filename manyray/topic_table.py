"""`manyray topics list`: what the pipeline needs beside what there is."""

from contextlib import closing

from rich.table import Table

from streams import clients
from streams.settings import Settings
from streams.topics import find_problems, list_partitions, plan_topics


def topic_table(settings: Settings, *versions: str) -> Table:
    """A row for each topic of these settings, and for the embeddings of other rays and versions.

    Records are the span of offsets, transaction markers included.

    Raises:
        Fatal: no broker answers.
    """
    existing = list_partitions(settings)
    problems = find_problems(settings, *versions)
    purposes = {plan.name: plan.purpose for plan in plan_topics(settings, *versions)}
    for name in sorted(existing):
        if name.startswith("embeddings."):
            purposes.setdefault(name, "embeddings of another version")
    table = Table("topic", "purpose", box=None, pad_edge=False)
    table.add_column("partitions", justify="right")
    table.add_column("records", justify="right")
    table.add_column("state")
    records = _records(settings, {name: existing[name] for name in purposes if name in existing})
    for name, purpose in purposes.items():
        wrong = [problem.removeprefix(f"topic {name} ") for problem in problems if problem.startswith(f"topic {name} ")]
        count = f"{records[name]:,}" if name in records else "-"
        table.add_row(name, purpose, str(existing.get(name, "-")), count, "; ".join(wrong) or "ok")
    return table


def _records(settings: Settings, partitions: dict[str, int]) -> dict[str, int]:
    with closing(clients.reader(settings)) as consumer:

        def span(topic: str, partition: int) -> int:
            low, high = clients.watermarks(consumer, topic, partition)
            return high - low

        return {topic: sum(span(topic, one) for one in range(count)) for topic, count in partitions.items()}
