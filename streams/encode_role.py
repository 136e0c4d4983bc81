"""The encode role: an encoder, and a stage of its own, for each version that it serves."""

import logging
import threading
from collections.abc import Mapping

from prometheus_client import CollectorRegistry

from encoders.encoder import Encoder
from encoders.engine import Engine
from encoders.load import load_encoder, measure_peak, warm_up
from schemas.chunk import Place
from schemas.errors import Fatal
from streams.attempts import keep_going
from streams.encode import Encode
from streams.gpu import register_gpu
from streams.metrics import ByVersion
from streams.role import begin
from streams.serving import Part, serve
from streams.settings import Settings
from streams.version import model_of
from streams.watchdog import ended_after

_log = logging.getLogger("manyray.encode")

WARM_UP_TIMEOUT_S = 300.0
"""A device that hangs answers nobody; a large model on a slow one takes minutes."""


def run(settings: Settings, stop: threading.Event) -> None:
    """Run one encode process until `stop` is set.

    Raises:
        Fatal: it cannot start, or cannot go on.
    """
    registry, metrics = CollectorRegistry(), ByVersion()
    registry.register(metrics)
    health = begin(settings, "encode", stop, registry)
    serve(settings, health, metrics, lambda part: EncodeWorker(part, registry))


class EncodeWorker:
    """The encoder of one version, and the stage that feeds it."""

    def __init__(self, part: Part, registry: CollectorRegistry) -> None:
        """`registry` is the process's own: of what versions share."""
        self._part, self._registry = part, registry
        self._stage: Encode | None = None
        self._engine: Engine | None = None

    def run(self, stop: threading.Event) -> None:
        """As in `Worker`."""
        part, settings, metrics = self._part, self._part.settings, self._part.metrics
        encoder = self._load()
        if stop.is_set():
            return
        batch_tokens = settings.batch_tokens or encoder.batch_tokens
        # Here, and not on the engine's thread: see DECISIONS 23 before moving it.
        with ended_after(WARM_UP_TIMEOUT_S, "it has not computed its first batch"):
            fitting = warm_up(encoder, batch_tokens)
            metrics.encode_peak_flops.set(measure_peak(encoder))
        if stop.is_set():
            return
        register_gpu(self._registry, encoder.device)
        if fitting < batch_tokens:
            _log.warning("batch_tokens=%d does not fit the memory of the device: %d it is", batch_tokens, fitting)
            batch_tokens = fitting
        with Engine(encoder, batch_tokens) as self._engine:
            self._stage = stage = Encode(settings, part.topics, metrics, self._engine, part.is_shadow, stop=stop)
            try:
                keep_going(stage.step, stage.recover, stop)
                stage.commit_last_ends()
            finally:
                stop.set()  # after a failure too: what is left has the time of a stop
                stage.close()

    def waits_for(self) -> str:
        """As in `Worker`."""
        return self._stage.waits_for() if self._stage else "it is loading its model"

    def processed(self) -> Mapping[Place, int]:
        """As in `Worker`."""
        return self._stage.positions() if self._stage else {}

    def beat(self) -> int:
        """As in `Worker`."""
        return self._engine.batches if self._engine else 0

    def _load(self) -> Encoder:
        """Load the encoder.

        Raises:
            Fatal: it cannot be loaded, or is another version on this machine.
        """
        settings, version = self._part.settings, self._part.topics.version
        encoder = load_encoder(model_of(settings), device=settings.device)
        if encoder.spec.version != version:
            raise Fatal(
                f"model={settings.model} is version {encoder.spec.version} here, and {version} is wanted: put the same "
                "files on this machine, at the same path"
            )
        return encoder
