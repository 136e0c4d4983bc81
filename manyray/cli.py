"""The command line: `manyray up`, the roles, and what a user does with the pipeline."""
# ruff: noqa: PLC0415 - a command imports what it needs, so that --help is quick

import logging
import math
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Literal, NoReturn, Protocol, cast

import typer

from manyray.cli_jobs import WIDTH_PIPED, jobs_app, replay
from manyray.cli_rays import rays_app
from manyray.flags import BadUsage, with_settings
from manyray.signals import stop_on_signals
from schemas.errors import ManyrayError, Retry
from streams.ending import end_process
from streams.handover import ROLE_STOP_S
from streams.settings import Settings

app = typer.Typer(
    help="Compute a post's embedding once on Kafka, and let every downstream model reuse it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
topics_app = typer.Typer(help="The topics of the pipeline: create, list or check them.")
app.add_typer(topics_app, name="topics")
app.add_typer(jobs_app, name="jobs")
app.add_typer(rays_app, name="rays")
app.command()(replay)

# ClickException, of click itself or of the copy of it that newer Typers carry.
_CLICK_ERROR = cast(type[typer.BadParameter], typer.BadParameter.__mro__[2])


# As in manyray.reading and manyray.tailing, whose imports are not for --help.
Format = Literal["lines", "jsonl", "csv", "tsv", "parquet"]
Start = Literal["earliest", "latest"]


class Role(Protocol):
    """What runs one role in this process."""

    def __call__(self, settings: Settings, stop: threading.Event) -> None:
        """Run until `stop` is set."""
        ...


def _end_at_last(told: int) -> None:
    """End a role that was told to stop and cannot, as Kafka's clients wait for brokers that are away.

    `told` is a file that says so: a signal's handler in Python waits for the main thread, which may be the one waiting.
    """
    os.read(told, 1)
    threading.Event().wait(ROLE_STOP_S)
    end_process(
        f"not ended in order within {ROLE_STOP_S:.0f} s, as without brokers: ended at once; nothing is lost, "
        "what was in hand is read again"
    )


def _run_role(run: Role, settings: Settings) -> None:
    with stop_on_signals() as stop:
        told, tell = os.pipe()
        os.set_blocking(tell, False)
        signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
        threading.Thread(target=_end_at_last, args=(told,), daemon=True).start()
        # A role that fails sets it too, before it gives back what it has.
        threading.Thread(target=lambda: stop.wait() and os.write(tell, b"\0"), daemon=True).start()
        try:
            try:
                run(settings, stop)
            except BaseException:
                os.write(tell, b"\0")  # what is left of the process, such as a thread that hangs, gets no longer
                raise
        except Retry:
            if not stop.is_set():  # else it was told to stop while it waited for brokers
                raise


@app.command()
@with_settings
def up(settings: Settings) -> None:
    """Run the whole pipeline until Ctrl-C: every role, and the embedded broker unless told otherwise."""
    from streams.up import Pipeline

    with stop_on_signals() as stop, Pipeline(settings) as pipeline:
        pipeline.wait_ready(math.inf, stop)  # a large model takes its time; who cannot start ends by itself
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
    from streams.dedup_role import run

    _run_role(run, settings)


@app.command()
@with_settings
def encode(settings: Settings) -> None:
    """Run one encoder process: what was never seen is computed."""
    from streams.encode_role import run

    _run_role(run, settings)


@app.command()
@with_settings
def publish(
    settings: Settings,
    file: Annotated[str, typer.Argument(help="file of posts, or - for stdin")],
    *,
    topic: Annotated[str | None, typer.Option(help="where to; the first of posts_topics if not given")] = None,
    layout: Annotated[
        Format | None,
        typer.Option("--format", help="lines, jsonl, csv, tsv or parquet; the file name's suffix says it if not given"),
    ] = None,
    id_field: Annotated[str, typer.Option(help="field or column of the id")] = "id",
    text_field: Annotated[str, typer.Option(help="field or column of the text")] = "text",
) -> None:
    """Publish a file's posts: plain lines, JSONL, CSV with a header row, or Parquet."""
    from manyray.publishing import publish_file

    typer.echo(publish_file(settings, file, topic, layout=layout, id_field=id_field, text_field=text_field))


@app.command()
@with_settings
def delete(
    settings: Settings,
    ids: Annotated[list[str], typer.Argument(help="of posts")],
    *,
    topic: Annotated[
        str | None, typer.Option(help="where they were published; the first of posts_topics if not given")
    ] = None,
) -> None:
    """Delete posts by their ids: who reads embeddings is told, by a record without a value."""
    from manyray.client import Client

    with Client(settings) as client:
        count = client.delete(ids, topic)
    typer.echo(f"{count:,} {'post' if count == 1 else 'posts'} deleted from {topic or settings.posts_topics[0]}")


@app.command("encode-file")
@with_settings
def encode_file(
    settings: Settings,
    file: Annotated[str, typer.Argument(help="file of posts, or - for stdin")],
    out: Annotated[Path, typer.Argument(help="file of vectors: .npy, .parquet or .jsonl")],
    *,
    layout: Annotated[
        Format | None,
        typer.Option("--format", help="lines, jsonl, csv, tsv or parquet; the file name's suffix says it if not given"),
    ] = None,
    id_field: Annotated[
        str | None, typer.Option(help="field or column of the id; if not given id, or the number of line or row")
    ] = None,
    text_field: Annotated[str, typer.Option(help="field or column of the text")] = "text",
) -> None:
    """Encode a file's posts into a file of vectors, without Kafka; run again, it goes on where it was ended."""
    from manyray.file_encoding import encode_file

    typer.echo(encode_file(settings, file, out, layout=layout, id_field=id_field, text_field=text_field))


@app.command()
@with_settings
def forget(
    settings: Settings,
    ray: Annotated[str, typer.Argument(help="such as textray; textray@VERSION where fingerprints are given")],
    file: Annotated[str | None, typer.Argument(help="file of posts with the contents, or - for stdin")] = None,
    *,
    fingerprint: Annotated[
        list[str] | None, typer.Option(help="of an embedding of the version, as `manyray tail --json` shows it")
    ] = None,
    layout: Annotated[
        Format | None,
        typer.Option("--format", help="lines, jsonl, csv, tsv or parquet; the file name's suffix says it if not given"),
    ] = None,
    text_field: Annotated[str, typer.Option(help="field or column of the text")] = "text",
) -> None:
    """Remove contents from the tables and `vectors` of all versions, and prove that they are gone."""
    from manyray.forgetting import forget_contents

    with stop_on_signals() as stop:
        told = forget_contents(settings, ray, file, fingerprint or (), stop, layout=layout, text_field=text_field)
    if told is None:
        typer.echo("stopped before all was forgotten: do it again", err=True)
        raise typer.Exit(128 + stop.number)
    typer.echo(told)


@app.command()
@with_settings
def pin(
    settings: Settings,
    file: Annotated[Path, typer.Argument(help="TOML file of a model and its choices; made if it is not there")],
    *,
    calibrate: Annotated[str | None, typer.Option(help="file of posts of which int8's scale is found")] = None,
    layout: Annotated[
        Format | None,
        typer.Option("--format", help="of the posts; the file name's suffix says it if not given"),
    ] = None,
    text_field: Annotated[str, typer.Option(help="field or column of the text")] = "text",
) -> None:
    """Write into a file what tells its model from every other, so that a wrong weight file never serves."""
    from manyray.pinning import pin_spec

    typer.echo(pin_spec(settings, file, calibrate, layout=layout, text_field=text_field))


@app.command()
@with_settings
def tail(
    settings: Settings,
    ray: Annotated[str, typer.Argument(help="such as textray, or textray@VERSION")],
    *,
    start: Annotated[Start, typer.Option("--from", help="earliest or latest")] = "latest",
    limit: Annotated[int | None, typer.Option(min=1, help="end after so many")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines, with the whole vector")] = False,
    group: Annotated[
        str | None, typer.Option(help="consumer group to read as: what was printed is then committed")
    ] = None,
) -> None:
    """Print embeddings as they arrive: id, first numbers, origin, milliseconds from post to embedding."""
    from manyray.tailing import tail_ray

    tail_ray(settings, ray, start=start, limit=limit, as_json=as_json, group=group)


@app.command()
@with_settings
def export(
    settings: Settings,
    ray: Annotated[str, typer.Argument(help="such as textray, or textray@VERSION")],
    out: Annotated[Path, typer.Argument(help="folder of Parquet files: a new one, or one to go on with")],
    *,
    start: Annotated[
        str, typer.Option("--from", help="beginning, a time, 12h (ago), or offsets 0:1200,1:1180")
    ] = "beginning",
    end: Annotated[str, typer.Option("--to", help="the same, or now: what is written later is not part of it")] = "now",
    file_rows: Annotated[int, typer.Option(min=1, help="most embeddings in a file")] = 100_000,
) -> None:
    """Write a range of embeddings into Parquet files, as for training; ended in any way, the same command goes on."""
    from manyray.exporting import export_ray

    with stop_on_signals() as stop:
        told, is_whole = export_ray(settings, ray, out, start=start, end=end, file_rows=file_rows, stop=stop)
        typer.echo(told)
    if not is_whole:
        raise typer.Exit(128 + stop.number)


@topics_app.command()
@with_settings
def create(settings: Settings) -> None:
    """Create the topics that are missing."""
    from streams.control import create_ray

    created = create_ray(settings)
    typer.echo("\n".join(f"created {name}" for name in created) or "nothing to do: every topic exists")


@topics_app.command("list")
@with_settings
def list_(settings: Settings) -> None:
    """List the topics: purpose, partitions, records (transaction markers included) and state."""
    from rich.console import Console

    from manyray.topic_table import topic_table
    from streams.control import planned_versions

    console = Console(width=None if sys.stdout.isatty() else WIDTH_PIPED)
    console.print(topic_table(settings, *planned_versions(settings)))


@topics_app.command()
@with_settings
def check(settings: Settings) -> None:
    """Say what is wrong with the topics, and the remedy; the exit code is 1 if anything is."""
    from streams.control import planned_versions
    from streams.topics import find_problems

    problems = find_problems(settings, *planned_versions(settings))
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise typer.Exit(1)
    typer.echo("all topics are as they should be")


@app.command()
@with_settings
def doctor(settings: Settings) -> None:
    """Say what is wrong with this installation, and the remedy; the exit code is 1 if anything is."""
    from manyray.doctor import examine

    if not examine(settings):
        raise typer.Exit(1)


@app.command()
@with_settings
def demo(
    settings: Settings,
    posts: Annotated[str | None, typer.Option(help="file of your own posts, each published as it is")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="how many posts; of a file all if not given")] = None,
    seed: Annotated[int, typer.Option(help="decides which sample posts come back, and how often")] = 0,
) -> None:
    """Run a whole pipeline on posts for half a minute, watch it, and see what comes out; nothing is left behind."""
    from manyray.demo import run_demo

    run_demo(settings, posts, count, seed)


def main() -> NoReturn:
    """Run the command line and exit: 0; 1 for an error, 2 for wrong flags or settings, 130 or 143 after a signal.

    Roles and `up`, which run until they are told to stop, exit with 0 when they are.
    """
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    sys.exit(_run(sys.argv[1:] or ["--help"]))


def _exit_on_sigterm(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


def _run(arguments: list[str]) -> int:
    try:
        return app(arguments, prog_name="manyray", standalone_mode=False) or 0
    except BadUsage as error:
        return _fail(str(error), 2)
    except ManyrayError as error:
        return _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except _CLICK_ERROR as error:
        return _fail(error.format_message(), 2)
    except Exception as error:
        if logging.getLogger("manyray").isEnabledFor(logging.DEBUG):
            raise
        return _fail(f"unexpected {type(error).__name__}: {error}; --log-level debug shows where", 1)


def _fail(message: str, code: int) -> int:
    """Say what went wrong in one line on stderr."""
    sys.stderr.write(f"manyray: {' '.join(message.split())}\n")
    return code
