"""The images and the compose files agree with the code: no engine runs here, so names are held against names."""

import importlib
import os
import re
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from packaging.requirements import Requirement

from streams.endpoint import DEFAULT_PORT, serve
from streams.health import Health
from streams.kafka_jars import KAFKA_VERSION
from streams.metrics import Metrics
from streams.ports import choose_ports
from streams.settings import PREFIX, Settings, load_settings

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("Dockerfile*"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SHARED = "model revision dtype max_tokens salt ray posts_topics partitions replication bootstrap_servers".split()
"""Settings that all roles have to agree on: they decide fingerprints, topic names, and who meets whom."""

Compose = dict[str, Any]
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(:-(?P<default>[^}]*))?\}")


def merge(base: Any, over: Any) -> Any:
    """What compose makes of two files, for as much as ours use: mappings merge, all else is replaced."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    return {**base, **{key: merge(base[key], value) if key in base else value for key, value in over.items()}}


def interpolate(text: str) -> str:
    """`${NAME:-default}` in an environment that sets nothing."""
    return _VARIABLE.sub(lambda match: match["default"] or "", text)


def read_compose(*names: str) -> Compose:
    """The compose files, merged in their order."""
    merged: Compose = {}
    for name in names:
        merged = merge(merged, yaml.safe_load((DOCKER / name).read_text(encoding="utf-8")))
    return merged


@pytest.fixture(params=[("compose.yaml",), ("compose.yaml", "compose.cuda.yaml")], ids=["cpu", "cuda"])
def compose(request: pytest.FixtureRequest) -> Compose:
    """The pipeline as it is started on CPUs, and with the encoder on a GPU."""
    return read_compose(*request.param)


def ours(compose: Compose) -> dict[str, Any]:
    """The services that run Manyray."""
    return {name: service for name, service in compose["services"].items() if name != "kafka"}


def environment(service: dict[str, Any]) -> dict[str, str]:
    """A service's variables, as its process sees them."""
    return {name: interpolate(str(value)) for name, value in service["environment"].items()}


def settings_of(service: dict[str, Any], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Settings:
    """The settings that a service's variables load as, where nothing else is set."""
    monkeypatch.chdir(folder)
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    for name, value in environment(service).items():
        monkeypatch.setenv(name, value)
    return load_settings()


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """The (name, arguments) of a Dockerfile, comments gone and continued lines joined."""
    lines = [line for line in dockerfile.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def copied(dockerfile: Path) -> list[str]:
    """What a Dockerfile takes from the project."""
    copies = [rest.split() for name, rest in instructions(dockerfile) if name in {"COPY", "ADD"}]
    return [word for words in copies if not words[0].startswith("--from=") for word in words[:-1]]


def published(compose: Compose) -> list[tuple[str, str, str, str]]:
    """Every published port as (service, host address, host port, container port); another form does not unpack."""
    rows: list[tuple[str, str, str, str]] = []
    for name, service in compose["services"].items():
        for port in service.get("ports", []):
            address, outer, inner = str(port).split(":")
            rows.append((name, address, outer, inner))
    return rows


def assert_pinned(image: str) -> None:
    """An image names a version: a tag with a number in it, or a digest."""
    tag = image.rpartition("/")[2].partition(":")[2]
    assert re.search(r"\d", tag), f"{image} is not pinned"
    assert "latest" not in tag


def test_each_service_runs_a_command_that_exists(compose: Compose) -> None:
    """Each of our services runs a command of the CLI by its full name, and each role has its service."""
    app = importlib.import_module("manyray.cli").app
    for name, service in ours(compose).items():
        command: Any = typer.main.get_command(app)
        for word in service["command"]:
            assert word in command.commands, f"{name}: manyray {' '.join(service['command'])} is no command"
            command = command.commands[word]
        assert not hasattr(command, "commands"), f"{name}: manyray {' '.join(service['command'])} is not whole"
    assert set(ours(compose)) == {"topics", *DEFAULT_PORT}
    assert all(compose["services"][role]["command"] == [role] for role in DEFAULT_PORT)


def test_every_variable_is_a_setting_that_loads(
    compose: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Our services set settings and nothing else, to values that load; the roles agree on what they share."""
    loaded: dict[str, Settings] = {}
    for name, service in ours(compose).items():
        for variable in environment(service):
            assert variable.removeprefix(PREFIX).lower() in Settings.model_fields, f"{name} sets {variable}"
        with monkeypatch.context() as patch:
            loaded[name] = settings_of(service, patch, tmp_path)
    for key in SHARED:
        assert len({str(getattr(settings, key)) for settings in loaded.values()}) == 1, f"{key} differs between roles"


def test_the_variables_left_to_the_user_are_settings() -> None:
    """`${NAME}` in a compose file names the setting that it fills, and has a default."""
    for path in DOCKER.glob("compose*.yaml"):
        for line in path.read_text(encoding="utf-8").splitlines():
            for match in _VARIABLE.finditer(line):
                assert match["default"] is not None
                assert line.split(":")[0].strip() == match["name"]


def test_ports_are_published_on_this_machine_only(compose: Compose) -> None:
    """No port is published on another address than 127.0.0.1, and none twice."""
    ports = published(compose)
    assert {address for _, address, _, _ in ports} == {"127.0.0.1"}
    assert len({outer for _, _, outer, _ in ports}) == len(ports)
    assert not any("network_mode" in service for service in compose["services"].values())


def test_metrics_are_reachable(compose: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A role serves its metrics outside its container, on the port that its service publishes and its image exposes."""
    ports = {(name, inner) for name, _, _, inner in published(compose)}
    for role, port in DEFAULT_PORT.items():
        service = compose["services"][role]
        with monkeypatch.context() as patch:
            settings = settings_of(service, patch, tmp_path)
        assert (settings.metrics_host, settings.metrics_port) == ("0.0.0.0", port)
        assert (role, str(port)) in ports
        exposed = dict(instructions(ROOT / service["build"]["dockerfile"]))["EXPOSE"].split()
        assert str(port) in exposed


def test_a_service_is_healthy_when_it_is_ready(compose: Compose) -> None:
    """The check of every role asks a real endpoint: 0 while the role is ready, 1 while it is not, or is not there."""
    health = Health(threading.Event())
    (port, nobody) = choose_ports([0, 0])
    serve(Metrics.create().registry, health, load_settings(metrics_port=port), "ingest")
    for role in DEFAULT_PORT:
        kind, *command = compose["services"][role]["healthcheck"]["test"]
        assert (kind, command[:2]) == ("CMD", ["python", "-c"])

        def check(asked: int, code: str = command[2]) -> int:
            environment = {**os.environ, "MANYRAY_METRICS_PORT": str(asked)}
            return subprocess.run(
                [sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL, check=False
            ).returncode

        health.waits_for = lambda: ""
        assert check(port) == 0
        health.waits_for = lambda: "it is loading"
        assert check(port) == 1
        assert check(nobody) == 1


def test_the_broker_is_found_where_it_says_it_is(compose: Compose) -> None:
    """Kafka advertises the address that the roles are given, and to the host the port that it publishes there."""
    kafka = compose["services"]["kafka"]
    variables = environment(kafka)
    advertised = dict(item.split("://") for item in variables["KAFKA_ADVERTISED_LISTENERS"].split(","))
    listeners = dict(item.split("://") for item in variables["KAFKA_LISTENERS"].split(","))
    protocols = dict(item.split(":") for item in variables["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(","))
    assert listeners.keys() == protocols.keys() == advertised.keys() | {variables["KAFKA_CONTROLLER_LISTENER_NAMES"]}
    assert all(advertised[name].endswith(listeners[name]) for name in advertised)
    assert {environment(service)["MANYRAY_BOOTSTRAP_SERVERS"] for service in ours(compose).values()} == {
        advertised[variables["KAFKA_INTER_BROKER_LISTENER_NAME"]]
    }
    assert [f"{address}:{outer}" for name, address, outer, _ in published(compose) if name == "kafka"] == [
        advertised["HOST"]
    ]
    assert kafka["hostname"] == advertised["INSIDE"].split(":")[0]
    assert variables["KAFKA_LOG_DIRS"] in {volume.split(":")[1] for volume in kafka["volumes"]}


def test_compose_runs_the_kafka_that_the_project_is_tested_with(compose: Compose) -> None:
    """The broker's image is of the same version as the embedded broker, and our images of this project's."""
    assert compose["services"]["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"
    version = PROJECT["project"]["version"]
    for service in ours(compose).values():
        assert service["image"] in {f"manyray:{version}", f"manyray:{version}-cuda"}


def test_images_are_pinned(compose: Compose) -> None:
    """Every image that is pulled names a version."""
    for service in compose["services"].values():
        assert_pinned(service["image"])
    for dockerfile in DOCKERFILES:
        bases = [rest.split()[0] for name, rest in instructions(dockerfile) if name == "FROM"]
        assert bases
        for base in bases:
            assert_pinned(base)


def test_what_services_refer_to_exists(compose: Compose) -> None:
    """Build files, dependencies and volumes are there; a service is waited for in a way that it can fulfil."""
    services = compose["services"]
    for name, service in ours(compose).items():
        context = (DOCKER / service["build"]["context"]).resolve()
        assert context == ROOT.resolve(), name
        dockerfile = context / service["build"]["dockerfile"]
        declared = {rest for key, rest in instructions(dockerfile) if key == "ARG"}
        assert set(service["build"]["args"]) <= declared, name
        for other, how in service["depends_on"].items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for {other} to be healthy"
            else:
                assert how["condition"] == "service_completed_successfully"
                assert services[other]["restart"] == "no", f"{name} waits for {other}, which never ends"
    volumes = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", []) if volume}
    assert volumes == set(compose["volumes"])


def test_tables_outlive_their_container(compose: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Dedup's data directory is a volume, at a place that the image gives to its user."""
    service = compose["services"]["dedup"]
    settings = settings_of(service, monkeypatch, tmp_path)
    assert str(settings.data_dir) in {volume.split(":")[1] for volume in service["volumes"]}
    assert any(
        str(settings.data_dir) in rest and "--owner=manyray" in rest
        for name, rest in instructions(ROOT / service["build"]["dockerfile"])
        if name == "RUN"
    )


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_copies_what_exists_and_all_packages(dockerfile: Path) -> None:
    """What an image copies is in the project and let through .dockerignore, and no package is missing from it."""
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored, "only what is named is let through"
    allowed = {line.removeprefix("!").rstrip("/") for line in ignored if line.startswith("!")}
    sources = copied(dockerfile)
    for source in sources:
        assert (ROOT / source).exists(), source
    assert set(sources) == allowed
    assert set(PROJECT["tool"]["setuptools"]["packages"]) <= set(sources)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_runs_manyray_as_nobody_special(dockerfile: Path) -> None:
    """An image starts the `manyray` script, as a user that is not root, its dependencies held by the constraints."""
    last = dict(instructions(dockerfile))  # the last of each name is the shipped stage's
    assert last["ENTRYPOINT"] == '["manyray"]'
    assert "manyray" in PROJECT["project"]["scripts"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"])
    installs = [rest for name, rest in instructions(dockerfile) if name == "RUN" and "pip install" in rest]
    assert installs
    for install in installs:
        assert "--no-deps" in install or "-c constraints.txt" in install
    variables = re.findall(rf"\b({PREFIX}\w+)=", last["ENV"])
    assert all(name.removeprefix(PREFIX).lower() in Settings.model_fields for name in variables)


def test_constraints_pin_every_dependency_once() -> None:
    """constraints.txt is sorted `name==version` lines, each name once, with every direct dependency in its bounds."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*==[a-z0-9.+!]+", pin) for pin in pins)
    versions = dict(pin.split("==") for pin in pins)
    assert list(versions) == sorted(versions)
    assert len(versions) == len(pins)
    for wanted in [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["dev"]]:
        requirement = Requirement(wanted)
        assert requirement.specifier.contains(versions[requirement.name]), wanted
    assert "manyray" not in versions


@pytest.mark.parametrize(
    "path",
    [*(path for path in DOCKER.rglob("*") if path.is_file()), ROOT / "constraints.txt", ROOT / "Makefile"],
    ids=lambda path: path.name,
)
def test_no_file_names_a_package_index(path: Path) -> None:
    """Where packages come from is the user's choice: no file has an address in it."""
    assert not re.search(r"\b(https?|git|ssh)://", path.read_text(encoding="utf-8"))


def test_alerts_ask_for_metrics_that_are_there() -> None:
    """Every metric and label that a rule names is one of ours, and each says what happened and what to do."""
    registry = Metrics.create().registry
    labels = {metric._name: metric._labelnames for metric in registry._collector_to_names}
    labels["manyray_restarts"] = ()  # which every process has
    rules = yaml.safe_load((DOCKER / "alerts.yaml").read_text(encoding="utf-8"))["groups"][0]["rules"]
    for rule in rules:
        asked = [name.removesuffix("_total") for name in re.findall(r"manyray_\w+", rule["expr"])]
        assert asked
        assert set(asked) <= labels.keys()
        used = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert used <= {"instance", *labels[asked[0]]}
        assert rule["annotations"].keys() == {"summary", "description"}
