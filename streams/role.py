"""What every role does before anything else."""

import logging

from streams.metrics import Metrics, serve_metrics
from streams.settings import Settings
from streams.topics import Topics, check_topics
from streams.version import version_of

_log = logging.getLogger("manyray.role")


def begin(settings: Settings, role: str) -> tuple[Topics, Metrics]:
    """Name the version, check the topics, serve the metrics: the topics and metrics of a role that may start.

    Raises:
        Fatal: the model, a topic, the brokers or the metrics port stand in the way.
    """
    _log.debug("settings: %s", settings.redacted())
    version = version_of(settings)
    check_topics(settings, version)
    metrics = Metrics.create()
    serve_metrics(metrics, settings, role)
    return Topics.of(settings, version), metrics
