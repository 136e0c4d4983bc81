"""The command line: `manyray up`, the roles, and what a user does with the pipeline."""
# ruff: noqa: PLC0415 - a command imports what it needs, so that --help is quick

import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import NoReturn, Protocol, cast

import typer

from manyray.flags import BadUsage, with_settings
from schemas.errors import ManyrayError
from streams.settings import Settings

app = typer.Typer(
    help="Compute a post's embedding once on Kafka, and let every downstream model reuse it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
topics_app = typer.Typer(help="The topics of the pipeline: create, list or check them.")
app.add_typer(topics_app, name="topics")

# ClickException, of click itself or of the copy of it that newer Typers carry.
_CLICK_ERROR = cast(type[typer.BadParameter], typer.BadParameter.__mro__[2])


class Role(Protocol):
    """What runs one role in this process."""

    def __call__(self, settings: Settings, stop: threading.Event) -> None:
        """Run until `stop` is set."""
        ...


@contextmanager
def stop_on_signals() -> Generator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one interrupts whatever is then being done."""
    stop = threading.Event()

    def on_signal(_number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    old = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _run_role(run: Role, settings: Settings) -> None:
    with stop_on_signals() as stop:
        run(settings, stop)


@app.command()
@with_settings
def up(settings: Settings) -> None:
    """Run the whole pipeline until Ctrl-C: every role, and the embedded broker unless told otherwise."""
    from streams.up import Pipeline

    with stop_on_signals() as stop, Pipeline(settings) as pipeline:
        pipeline.wait_ready(stop=stop)
        if not stop.is_set():
            typer.echo(f"manyray is up: brokers at {pipeline.bootstrap_servers}; Ctrl-C stops it", err=True)
        pipeline.wait(stop)


@app.command()
@with_settings
def ingest(settings: Settings) -> None:
    """Run one ingest process: posts are checked, fingerprinted and packed."""
    from streams.ingest import run

    _run_role(run, settings)


@app.command()
@with_settings
def dedup(settings: Settings) -> None:
    """Run one dedup process: what was computed before is served from its table."""
    from streams.dedup_app import run

    _run_role(run, settings)


@app.command()
@with_settings
def encode(settings: Settings) -> None:
    """Run one encoder process: what was never seen is computed."""
    from streams.encode import run

    _run_role(run, settings)


def main() -> NoReturn:
    """Run the command line and exit: 0, 1 for an error, 2 for wrong flags or settings, 130 after Ctrl-C."""
    sys.exit(_run(sys.argv[1:] or ["--help"]))


def _run(arguments: list[str]) -> int:  # noqa: PLR0911 - one for each way to end
    try:
        return app(arguments, prog_name="manyray", standalone_mode=False) or 0
    except BadUsage as error:
        return _fail(str(error), 2)
    except ManyrayError as error:
        return _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:  # `manyray tail | head`: the reader has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except _CLICK_ERROR as error:
        return _fail(error.format_message(), 2)
    except Exception as error:
        if "debug" in (os.environ.get("MANYRAY_LOG_LEVEL"), *arguments):
            raise
        return _fail(f"unexpected {type(error).__name__}: {error}; --log-level debug shows where", 1)


def _fail(message: str, code: int) -> int:
    """Say what went wrong in one line on stderr."""
    sys.stderr.write(f"manyray: {' '.join(message.split())}\n")
    return code
