"""Which topics there are, and which of them a ray's name means."""

import threading

from schemas.errors import Fatal
from streams.attempts import with_retries
from streams.compacted import Latest
from streams.control import check_begun, ray_in
from streams.settings import Settings
from streams.topics import Topics, list_partitions

_PREFIX = "embeddings."


def find_embeddings_topic(settings: Settings, ray: str) -> str:
    """The topic of `<ray>@<version>`, or of `<ray>`: of the version that this name means now.

    Raises:
        Fatal: there is none.
    """
    name, _, version = ray.partition("@")
    if not version:
        control = open_control(settings, name)
        control.close()
        return Topics(name, ray_in(control).promoted, ()).embeddings
    existing = list_partitions(settings)
    versions = sorted(topic.rpartition(".")[2] for topic in existing if topic.startswith(f"{_PREFIX}{name}."))
    if not versions:
        raise _no_ray(name, existing)
    if version not in versions:
        raise Fatal(f"ray {name} has no version {version}; there are {', '.join(versions)}")
    return Topics(name, version, ()).embeddings


def open_control(settings: Settings, name: str) -> Latest:
    """The control topic of a ray, read to its end; the caller closes it.

    Raises:
        Fatal: there is no such ray.
    """
    topic, existing = Topics(name, "", ()).control, list_partitions(settings)
    if topic not in existing:
        raise _no_ray(name, existing)
    control = Latest(settings, topic)
    try:
        with_retries(control.catch_up, threading.Event())
        check_begun(ray_in(control), topic)
    except BaseException:
        control.close()
        raise
    return control


def _no_ray(name: str, existing: dict[str, int]) -> Fatal:
    rays = sorted({topic.split(".")[1] for topic in existing if topic.startswith(_PREFIX)})
    known = f"there are {', '.join(rays)}" if rays else "there is none yet: run `manyray topics create`"
    return Fatal(f"no ray {name} on these brokers; {known}")
