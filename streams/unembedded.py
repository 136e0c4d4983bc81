"""Tells an encoder that is broken, or has its device's memory taken, from texts that are too much for it."""

from schemas.errors import Fatal
from streams.submitted import Submitted
from streams.suspect import KILLS_ENCODER

UNEMBEDDED_MAX = 8
"""Distinct contents in a row without a vector: so many are not the fault of posts."""


class Unembedded:
    """The contents without a vector since the last one that has one."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._contents: set[bytes] = set()

    def note(self, done: Submitted) -> None:
        """Take a settled window, before anything of it is published.

        Fatal: it is the encoder.
        """
        if done.vectors:
            self._contents.clear()
            return
        self._contents.update(one for one, reason in done.failed.items() if reason != KILLS_ENCODER)
        if len(self._contents) >= UNEMBEDDED_MAX:
            reasons = ", ".join(sorted(set(done.failed.values())))
            raise Fatal(
                f"the encoder {self._model} has no vector for {len(self._contents)} contents in a row "
                f"({reasons}): check its weights, and who else takes its device's memory"
            )
