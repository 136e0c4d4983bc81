"""Which topics there are, and which of them a ray's name means."""

from schemas.errors import Fatal
from streams.settings import Settings
from streams.topics import list_partitions
from streams.version import version_of


def find_embeddings_topic(settings: Settings, ray: str) -> str:
    """The topic of `<ray>@<version>`, or of `<ray>`: the version of the settings, else the only one there is.

    Raises:
        Fatal: there is none, or there are several and the settings name none of them.
    """
    name, _, version = ray.partition("@")
    existing = list_partitions(settings)
    prefix = f"embeddings.{name}."
    versions = sorted(topic.removeprefix(prefix) for topic in existing if topic.startswith(prefix))
    if not versions:
        rays = sorted({topic.split(".")[1] for topic in existing if topic.startswith("embeddings.")})
        known = f"there are {', '.join(rays)}" if rays else "there is none yet: run `manyray topics create`"
        raise Fatal(f"no ray {name} on these brokers; {known}")
    if version and version not in versions:
        raise Fatal(f"ray {name} has no version {version}; there are {', '.join(versions)}")
    if len(versions) == 1:
        return prefix + versions[0]
    own = version or _own_version(settings, name)
    if own in versions:
        return prefix + own
    raise Fatal(f"ray {name} has several versions: choose one as {name}@{f' or {name}@'.join(versions)}")


def _own_version(settings: Settings, ray: str) -> str:
    """The version of the settings; empty if they are another ray's, or name a model that is not on this machine."""
    if ray != settings.ray:
        return ""
    try:
        return version_of(settings)
    except Fatal:
        return ""
