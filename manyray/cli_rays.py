"""`manyray rays` as it is typed."""
# ruff: noqa: PLC0415 - a command imports what it needs, so that --help is quick

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from manyray.cli_jobs import NICENESS, WIDTH_PIPED
from manyray.flags import with_settings
from manyray.signals import stop_on_signals
from streams.settings import Settings

rays_app = typer.Typer(
    help="The versions of a ray: add one, move everyone to it, retire another.", no_args_is_help=True
)

POSTS_MIN = 50  # as in manyray.comparing, whose imports are not for --help
_RAY = typer.Argument(help="such as textray")
_VERSION = typer.Argument(help="such as textray@VERSION")
_SHARE = typer.Option(help="of the contents of live posts that it embeds, from 0 to 1")


@rays_app.command()
@with_settings
def add(
    settings: Settings,
    ray: Annotated[str, _RAY],
    *,
    share: Annotated[float, _SHARE] = 0.0,
    untried: Annotated[bool, typer.Option("--untried", help="do not load the model here first")] = False,
) -> None:
    """Serve one more version, that of --model, beside those there are; running roles begin with it."""
    from manyray.ray_orders import add_version

    typer.echo(add_version(settings, ray, share, untried=untried))


@rays_app.command("list")
@with_settings
def list_(settings: Settings) -> None:
    """List the versions that are served, and what each is to the ray."""
    from rich.console import Console

    from manyray.ray_orders import find_ray
    from manyray.ray_words import versions_table

    console = Console(width=None if sys.stdout.isatty() else WIDTH_PIPED)
    console.print(versions_table(settings.ray, find_ray(settings, settings.ray)))


@rays_app.command()
@with_settings
def show(settings: Settings, name: Annotated[str, typer.Argument(help="such as textray, or textray@VERSION")]) -> None:
    """Show a ray's versions and what its bare name meant when; of a version, which consumer groups read it."""
    from rich.console import Console

    from manyray.ray_orders import find_ray
    from manyray.ray_words import promotions_table, readers_table, versions_table
    from streams.control import topics_of
    from streams.readers import find_readers
    from streams.topics import Topics

    console = Console(width=None if sys.stdout.isatty() else WIDTH_PIPED)
    ray, _, version = name.partition("@")
    found = find_ray(settings, ray)
    if not version:
        console.print(versions_table(ray, found))
        console.print()
        console.print(promotions_table(ray, found))
    shown = (version,) if version else found.names
    named = {f"{ray}@{one}": topics_of(settings, found.find(one)).embeddings for one in shown}
    if found.mirrored and not version:
        mirror = Topics.of(settings, "").mirror
        named[f"{mirror}, in which the bare name is mirrored,"] = mirror
    for what, topic in named.items():
        readers = find_readers(settings, topic)
        console.print(f"\n{what} is read by" + ("" if readers else " no consumer group"))
        if readers:
            console.print(readers_table(readers))


@rays_app.command()
@with_settings
def shadow(
    settings: Settings,
    version: Annotated[str, _VERSION],
    *,
    share: Annotated[float, _SHARE],
) -> None:
    """Let a version embed a share of live posts, beside the promoted one, which nobody waits for."""
    from manyray.ray_orders import change_share

    typer.echo(change_share(settings, version, share))


@rays_app.command()
@with_settings
def compare(
    settings: Settings,
    one: Annotated[str, _VERSION],
    other: Annotated[str, _VERSION],
    *,
    posts: Annotated[int, typer.Option(min=POSTS_MIN, max=10_000, help="most contents that are compared")] = 2_000,
    plot: Annotated[Path | None, typer.Option(help="draw it into a .png, .svg or .pdf; needs manyray[plot]")] = None,
) -> None:
    """Say how alike two versions see the posts that both embedded lately, and what each costs."""
    from rich.console import Console

    from manyray import comparing

    found = comparing.compare(settings, one, other, posts)
    Console(width=None if sys.stdout.isatty() else WIDTH_PIPED).print(comparing.comparison_table(found))
    if plot is not None:
        comparing.plot(found, plot)
        typer.echo(f"drawn in {plot}")


@rays_app.command()
@with_settings
def promote(
    settings: Settings,
    version: Annotated[str, _VERSION],
    *,
    backfill: Annotated[
        str | None, typer.Option(help="topic of posts, or file, that it embeds first; as `manyray replay`")
    ] = None,
    start: Annotated[
        str, typer.Option("--from", help="of the backfill: beginning, a time, 12h (ago), or offsets 0:1200,1:1180")
    ] = "beginning",
    end: Annotated[str, typer.Option("--to", help="the same, or now")] = "now",
) -> None:
    """Let the bare name mean a version from here on; to go back, promote the one before. Ended early, it goes on."""
    from manyray.ray_orders import Backfill, promote_version

    os.nice(NICENESS)
    with stop_on_signals() as stop:
        wanted = Backfill(backfill, start, end) if backfill is not None else None
        typer.echo(promote_version(settings, version, wanted, stop))
    if stop.number:
        raise typer.Exit(128 + stop.number)


@rays_app.command()
@with_settings
def mirror(
    settings: Settings, ray: Annotated[str, _RAY], state: Annotated[Literal["on", "off"], typer.Argument()]
) -> None:
    """Let embeddings of the bare name go to embeddings.RAY too, for clients that follow no promotion."""
    from manyray.ray_orders import mirror_ray

    typer.echo(mirror_ray(settings, ray, on=state == "on"))


@rays_app.command()
@with_settings
def deprecate(
    settings: Settings,
    version: Annotated[str, _VERSION],
    *,
    on: Annotated[str, typer.Option(help="day on which it is to be retired, such as 2026-12-31; never takes it back")],
) -> None:
    """Say in a version's records when it is to be retired."""
    from manyray.ray_orders import deprecate_version

    typer.echo(deprecate_version(settings, version, on))


@rays_app.command()
@with_settings
def retire(
    settings: Settings,
    version: Annotated[str, _VERSION],
    *,
    force: Annotated[bool, typer.Option("--force", help="also while consumer groups read it")] = False,
) -> None:
    """Serve a version no longer, and delete its topics and tables; refused while anybody reads it."""
    from manyray.ray_orders import retire_version

    typer.echo(retire_version(settings, version, force=force))
