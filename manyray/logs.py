"""Logging: one line a record on stderr, `HH:MM:SS role level message`; never a post's text, never a secret.

`streams/up.py` reads these lines.
"""

import logging
import sys


class _OneLine(logging.Formatter):
    """A record as one line; tracebacks only if asked for, as libraries put the data at hand into theirs."""

    def __init__(self, role: str, tracebacks: bool) -> None:
        super().__init__(f"%(asctime)s {role} %(levelname)s %(message)s", datefmt="%H:%M:%S")
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        shown = logging.makeLogRecord(record.__dict__)
        shown.levelname = record.levelname.lower()
        if self._tracebacks:
            return super().format(shown)
        error = record.exc_info[0] if record.exc_info else None
        shown.exc_info = shown.exc_text = shown.stack_info = None
        line = " ".join(super().format(shown).split())
        return f"{line} ({error.__name__})" if error else line


def configure_logging(level: str, role: str) -> None:
    """Log to stderr from `level` up (debug, info, warning, error), under the role's name.

    Libraries are heard from warnings up, librdkafka only at debug: what it cannot mend comes back as our errors.
    """
    debug = level == "debug"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(role, tracebacks=debug))
    logging.basicConfig(handlers=[handler], level=logging.INFO if debug else logging.WARNING, force=True)
    logging.getLogger("manyray").setLevel(level.upper())
    logging.getLogger("manyray.kafka").setLevel(logging.DEBUG if debug else logging.CRITICAL)
    for name in ("faust", "mode", "asyncio", "httpx", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.INFO if debug else logging.ERROR)
    # It logs as errors what it then tries again.
    logging.getLogger("aiokafka").setLevel(logging.INFO if debug else logging.CRITICAL)
