"""What every role does before anything else."""

import logging
import threading

from streams.clients import await_brokers
from streams.endpoint import serve
from streams.health import Health
from streams.metrics import Metrics, restarts
from streams.settings import Settings
from streams.topics import Topics, check_topics
from streams.version import spec_of

_log = logging.getLogger("manyray.role")

BROKERS_WAIT_S = 600.0
"""Far above what uses up the restarts of `manyray up`: so brokers that are away do not."""


def begin(settings: Settings, role: str, stop: threading.Event) -> tuple[Topics, Metrics, Health]:
    """Name the version, check the topics, serve the endpoint: what a role that may start begins with.

    A role that was started again waits for brokers that are away, as it worked before.

    Raises:
        Retry: `stop` was set before the brokers answered.
        Fatal: the model, a topic, the brokers or the metrics port stand in the way.
    """
    _log.debug("settings: %s", settings.redacted())
    spec = spec_of(settings)
    if restarts():
        await_brokers(settings, BROKERS_WAIT_S, stop)
    check_topics(settings, spec.version)
    metrics, health = Metrics.create(), Health(stop)
    serve(metrics.registry, health, settings, role)
    return Topics.of(settings, spec.version, spec.form), metrics, health
