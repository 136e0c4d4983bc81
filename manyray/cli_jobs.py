"""`manyray replay` and `manyray jobs` as they are typed."""
# ruff: noqa: PLC0415 - a command imports what it needs, so that --help is quick

import math
import os
import sys
from typing import Annotated, Literal

import typer

from manyray.flags import with_settings
from manyray.signals import Stop, stop_on_signals
from streams.settings import Settings

jobs_app = typer.Typer(help="The replays of a ray: list them, or change one.", no_args_is_help=True)

WIDTH_PIPED = 200  # columns; a pipe has no width of its own
Format = Literal["lines", "jsonl", "csv", "tsv", "parquet"]  # as in manyray.reading, whose imports are not for --help
RATE_MIN = 0.1
NICENESS = 10
"""Of a process that replays: on a machine that has live posts to do too, those go first."""
_JOB = typer.Argument(help="of the job")


def parse_rate(text: str) -> float:
    """Posts a second, as 500 or 500/s."""
    try:
        rate = float(str(text).removesuffix("/s"))
    except ValueError:
        rate = -1.0
    if rate != 0 and not RATE_MIN <= rate < math.inf:
        raise typer.BadParameter(f"{text} is none: posts a second are wanted, as 500 or 500/s, {RATE_MIN} at least")
    return rate


@with_settings
def replay(
    settings: Settings,
    source: Annotated[str, typer.Argument(help="topic of posts; or a file or folder of them, with a slash or suffix")],
    *,
    ray: Annotated[str | None, typer.Option(help="such as textray, or textray@VERSION; that of the settings")] = None,
    start: Annotated[
        str, typer.Option("--from", help="beginning, a time, 12h (ago), or offsets 0:1200,1:1180")
    ] = "beginning",
    end: Annotated[str, typer.Option("--to", help="the same, or now: what is written later is not part of it")] = "now",
    rate: Annotated[
        float | None, typer.Option(parser=parse_rate, metavar="N/s", help="most posts a second; as many as live allow")
    ] = None,
    share: Annotated[
        float | None,
        typer.Option("--max-gpu-share", min=0.05, max=1.0, help="of each encoder's time, also where none is live"),
    ] = None,
    wanted: Annotated[str, typer.Option("--filter", help="JMESPath over a post's JSON, such as \"lang == 'en'\"")] = "",
    name: Annotated[str | None, typer.Option(help="of the job; made of topic and time if not given")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="send nothing: say from a sample what it would cost")
    ] = False,
    layout: Annotated[
        Format | None,
        typer.Option("--format", help="of files: lines, jsonl, csv, tsv or parquet; the suffix says it if not given"),
    ] = None,
    id_field: Annotated[
        str | None, typer.Option(help="of files: field of the id; if not given id, or the number of line or row")
    ] = None,
    text_field: Annotated[str, typer.Option(help="of files: field of the text")] = "text",
) -> None:
    """Send a range of a topic's posts, or files, through the pipeline after live ones; ended in any way, it goes on."""
    from manyray.replaying import Wanted, begin_replay, run_replay

    what = Wanted(
        source, ray or settings.ray, start, end, rate or None, share, wanted, name, layout, id_field, text_field
    )
    if dry_run:
        from rich.console import Console

        from manyray.dry_run import dry_run as estimate

        Console(width=None if sys.stdout.isatty() else WIDTH_PIPED).print(estimate(settings, what))
        return
    os.nice(NICENESS)
    with stop_on_signals() as stop:
        job = begin_replay(settings, what)
        typer.echo(run_replay(settings, job.name, stop))
    _exit_as_told(stop)


def _exit_as_told(stop: Stop) -> None:
    """What was stopped must not look whole to a script."""
    if stop.number:
        raise typer.Exit(128 + stop.number)


@jobs_app.command("list")
@with_settings
def list_jobs(settings: Settings) -> None:
    """List the replays: how each is, and how far it got."""
    from rich.console import Console

    from manyray.job_orders import list_jobs

    Console(width=None if sys.stdout.isatty() else WIDTH_PIPED).print(list_jobs(settings))


@jobs_app.command()
@with_settings
def resume(settings: Settings, name: Annotated[str, _JOB]) -> None:
    """Let a replay go on that was paused or stopped: in its process, or if that is gone in this one."""
    from manyray.job_orders import go_on

    os.nice(NICENESS)
    with stop_on_signals() as stop:
        typer.echo(go_on(settings, name, "run", stop))
    _exit_as_told(stop)


@jobs_app.command()
@with_settings
def pause(settings: Settings, name: Annotated[str, _JOB]) -> None:
    """Let a replay pause; its process waits until it is resumed."""
    from manyray.job_orders import change_job

    typer.echo(change_job(settings, name, order="pause"))


@jobs_app.command("rate")
@with_settings
def set_rate(
    settings: Settings,
    name: Annotated[str, _JOB],
    rate: Annotated[
        float, typer.Argument(parser=parse_rate, metavar="N/s", help="most posts a second; 0 for as many as live allow")
    ],
) -> None:
    """Change how fast a replay may go, while it runs."""
    from manyray.job_orders import change_job

    typer.echo(change_job(settings, name, rate=rate or None))


@jobs_app.command("share")
@with_settings
def set_share(
    settings: Settings,
    name: Annotated[str, _JOB],
    share: Annotated[float, typer.Argument(min=0.05, max=1.0, help="of each encoder's time; 1 for all of it")],
) -> None:
    """Change how much of the encoders' time a replay may take, while it runs; what waits for them keeps its share."""
    from manyray.job_orders import change_job

    typer.echo(change_job(settings, name, share=None if share == 1 else share))


@jobs_app.command()
@with_settings
def cancel(settings: Settings, name: Annotated[str, _JOB]) -> None:
    """End a replay where it is: what it has sent comes out."""
    from manyray.job_orders import go_on

    with stop_on_signals() as stop:
        typer.echo(go_on(settings, name, "cancel", stop))
    _exit_as_told(stop)


@jobs_app.command()
@with_settings
def forget(settings: Settings, name: Annotated[str, _JOB]) -> None:
    """Forget a replay that has ended."""
    from manyray.job_orders import forget_job

    typer.echo(forget_job(settings, name))
