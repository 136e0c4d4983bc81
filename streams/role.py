"""What every role does before anything else."""

import logging
import threading

from prometheus_client import CollectorRegistry, Gauge

from streams.clients import await_brokers
from streams.endpoint import serve
from streams.health import Health
from streams.metrics import restarts
from streams.settings import Settings
from streams.topics import check_topics

_log = logging.getLogger("manyray.role")

BROKERS_WAIT_S = 600.0
"""Far above what uses up the restarts of `manyray up`: so brokers that are away do not."""


def begin(settings: Settings, role: str, stop: threading.Event, registry: CollectorRegistry) -> Health:
    """Check the topics that all versions share, serve the endpoint: what a role that may start begins with.

    A role that was started again waits for brokers that are away, as it worked before.

    Raises:
        Retry: `stop` was set before the brokers answered.
        Fatal: a topic, the brokers or the metrics port stand in the way.
    """
    _log.debug("settings: %s", settings.redacted())
    if restarts():
        await_brokers(settings, BROKERS_WAIT_S, stop)
    check_topics(settings)
    health = Health(stop)
    started = Gauge("manyray_restarts", "times that `manyray up` has started this role again", registry=registry)
    started.set(restarts())
    serve(registry, health, settings, role)
    return health
