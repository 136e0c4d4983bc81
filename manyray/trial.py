"""What this machine's encoder does with some texts: tokens a second, and joules where a meter tells."""

from dataclasses import dataclass

import numpy as np

from encoders.engine import Engine
from encoders.load import load_encoder, warm_up
from encoders.nvml import Nvml
from streams import clock
from streams.settings import Settings
from streams.version import model_of

TRIAL_S = 3.0
"""About; at least a window."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What the encoder of this machine did with some texts. joules_per_token: None where no meter tells."""

    device: str
    dims: int
    tokens_per_text: float
    tokens_per_s: float
    joules_per_token: float | None


def try_encoder(settings: Settings, texts: list[str]) -> Trial:
    """Compute some of the texts, each of them once at most.

    Raises:
        Fatal: the model cannot be loaded.
    """
    encoder = load_encoder(model_of(settings), device=settings.device)
    device = encoder.device
    name = "no device" if device is None else str(device)
    if not texts:
        return Trial(name, encoder.dims, 0.0, 1.0, None)
    batch_tokens = warm_up(encoder, settings.batch_tokens or encoder.batch_tokens)
    meter = None
    if device is not None and device.type == "cuda":
        import torch  # noqa: PLC0415 - heavy, and it is there with such a device

        meter = Nvml(str(torch.cuda.get_device_properties(device).uuid))
    lengths = encoder.tokenise(texts).lengths
    with Engine(encoder, batch_tokens) as engine:
        before, began_s, tokens, at = meter.joules() if meter else None, clock.perf_s(), 0, 0
        while clock.perf_s() - began_s < TRIAL_S and at < len(texts):
            size = max(1, int(np.searchsorted(np.cumsum(lengths[at:]), engine.window_tokens)))
            tokens += engine.submit(texts[at : at + size]).result().tokens
            at += size
        took_s = clock.perf_s() - began_s
        after = meter.joules() if meter else None
    joules = None if before is None or after is None else (after - before) / max(1, tokens)
    return Trial(name, encoder.dims, float(lengths.mean()), tokens / took_s, joules)
