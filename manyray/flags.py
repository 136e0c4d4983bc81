"""The flags that every command has, and the settings made of them."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec, cast

import typer

from manyray.logs import configure_logging
from schemas.errors import Fatal
from streams.handover import inherited_settings, process_name
from streams.settings import Settings, load_settings

P = ParamSpec("P")
Command = Callable[Concatenate[Settings, P], None]

_PANEL = "Settings"
_KAFKA = "kafka."


class BadUsage(Fatal):
    """A flag or a setting is wrong: exit code 2."""


def _common(  # noqa: PLR0917 - called by names
    config: Annotated[
        Path | None,
        typer.Option("--config", help="settings file; manyray.toml here if there is one", rich_help_panel=_PANEL),
    ] = None,
    bootstrap_servers: Annotated[
        str | None,
        typer.Option(
            "--bootstrap-servers",
            help="brokers, HOST:PORT[,HOST:PORT]; without it the embedded broker of the data directory",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", help="folder of the embedded broker and the tables", rich_help_panel=_PANEL),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="minilm, hash, a model folder, a hub id ORG/NAME, or a .toml of `manyray pin`",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    log_level: Annotated[
        str | None, typer.Option("--log-level", help="debug, info, warning or error", rich_help_panel=_PANEL)
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="any setting, such as partitions=8 or kafka.sasl.username=me; other users of this machine may see "
            "flags, so secrets are better in the file or the environment",
            rich_help_panel=_PANEL,
        ),
    ] = None,
) -> Settings:
    """The settings that file, environment and flags make, the last winning."""
    try:
        return inherited_settings() or _load(
            config,
            set_ or [],
            bootstrap_servers=bootstrap_servers,
            data_dir=data_dir,
            model=model,
            log_level=log_level,
        )
    except Fatal as error:
        raise BadUsage(str(error)) from None


def _load(config: Path | None, assignments: list[str], **flags: object) -> Settings:
    kafka: dict[str, str] = {}
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        if not separator or not key:
            # Not shown: it may be a secret of which only the key was forgotten.
            raise Fatal("--set takes KEY=VALUE, such as --set partitions=8")
        if key.startswith(_KAFKA):
            kafka[key.removeprefix(_KAFKA)] = value
        elif key == "kafka":
            raise Fatal("--set kafka needs the property's name, such as --set kafka.sasl.username=me")
        elif key == "config":
            raise Fatal("config is a flag and not a setting: --config FILE")
        elif flags.get(key) is not None:
            raise Fatal(f"setting {key} is given twice: leave out --set {key}=...")
        else:
            flags[key] = value
    return load_settings(config, **flags, kafka=kafka)


def with_settings(function: Command[P]) -> Callable[..., None]:
    """Give a command the common flags and hand it their `Settings`; logging is set up under the command's name."""
    common = inspect.signature(_common).parameters
    own = list(inspect.signature(function).parameters.values())[1:]
    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*own, *common.values())]

    def command(**values: Any) -> None:
        settings = _common(**{name: values.pop(name) for name in common})
        configure_logging(settings.log_level, process_name() or command.__name__)
        cast(Callable[..., None], function)(settings, **values)

    # What Typer makes the command line from.
    command.__name__, command.__doc__ = function.__name__.replace("_", "-").strip("-"), function.__doc__
    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command
