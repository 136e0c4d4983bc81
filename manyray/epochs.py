"""What a ray's bare name meant, one version after another, and where in each version's embeddings that is. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas.chunk import Place
from streams.topics import Topics
from streams.versions import Ray


@dataclass(frozen=True, slots=True)
class Epoch:
    """A stretch in which the bare name meant a version: of each partition of its topic, from where and up to where.

    ends is None while it is not over, or not all of it is out. Not all that lies there is of the bare name: records say
    themselves whether they are.
    """

    version: str
    topic: str
    starts: dict[int, int]
    ends: dict[int, int] | None

    def holds(self, partition: int, offset: int) -> bool:
        """Whether a record of the stretch may lie at an offset, or after it."""
        return self.ends is None or offset < self.ends.get(partition, 0)

    def is_begun(self, committed: Mapping[Place, int]) -> bool:
        """Whether a group has read some of the stretch, by what it has committed; a negative offset is nothing."""
        return any(
            topic == self.topic and offset >= self.starts.get(partition, 0)
            for (topic, partition), offset in committed.items()
        )


def epochs_of(name: str, ray: Ray) -> tuple[Epoch, ...]:
    """The stretches of versions that are still served, the oldest first."""
    followers = [*ray.promotions[1:], None]
    return tuple(
        Epoch(
            promotion.version,
            Topics(name, promotion.version, ()).embeddings,
            promotion.starts,
            follower.ends if follower else None,
        )
        for promotion, follower in zip(ray.promotions, followers, strict=True)
        if promotion.version in ray.names
    )


def first_open(epochs: Sequence[Epoch], committed: Mapping[Place, int]) -> int:
    """The number of the first stretch that is not read to its end, by what is committed of every partition; a negative
    offset is none. The last one is always open, and one of which nothing is committed is not where a later one has been
    begun: the group began there.
    """
    last_begun = max((number for number, epoch in enumerate(epochs) if epoch.is_begun(committed)), default=0)
    for number, epoch in enumerate(epochs[:-1]):
        offsets = {partition: offset for (topic, partition), offset in committed.items() if topic == epoch.topic}
        if number < last_begun and not epoch.is_begun(committed):
            continue
        if any(epoch.holds(partition, max(0, offset)) for partition, offset in offsets.items()):
            return number
    return len(epochs) - 1
