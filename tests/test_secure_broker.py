"""Brokers that ask for passwords and certificates: every role and client gets in, Faust's too, or says why not."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

import manyray
from schemas.errors import Fatal
from streams import clients, clock
from streams.control import create_ray
from streams.kafka_jars import resolve_jars
from streams.kafka_node import Node, format_storage, start_server, wait_until_ready, write_settings
from streams.ports import HOST, choose_ports
from streams.settings import Settings, load_settings
from streams.topics import Topics, list_partitions
from streams.up import Pipeline
from streams.version import version_of
from tests.waiting import WAIT_S

pytestmark = pytest.mark.broker

SECRET = "hunter2-and-more"
KINDS = ("plain", "scram", "tls")


@dataclass(frozen=True)
class Secured:
    """A broker's addresses by kind of listener, and the folder of the certificate that it and its users have."""

    address: dict[str, str]
    certificate: Path

    def kafka(self, kind: str) -> dict[str, str]:
        """The `[kafka]` of a user of that listener."""
        me = {"sasl.username": "me", "sasl.password": SECRET}
        authority = {"ssl.ca.location": str(self.certificate / "cert.pem")}
        mine = {
            "ssl.certificate.location": str(self.certificate / "cert.pem"),
            "ssl.key.location": str(self.certificate / "key.pem"),
        }
        return {
            "plain": {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", **me},
            "scram": {"security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-512", **me, **authority},
            "tls": {"security.protocol": "SSL", **authority, **mine},
        }[kind]

    def settings(self, kind: str, data_dir: Path, **kafka: str) -> Settings:
        """Settings of a ray of its own at that listener, `kafka` changing what is passed through."""
        name = clock.random_id()
        return load_settings(
            bootstrap_servers=self.address[kind],
            data_dir=data_dir,
            ray=f"ray{name}",
            posts_topics=(f"posts{name}",),
            model="hash",
            partitions=2,
            kafka=self.kafka(kind) | kafka,
        )


def secure_properties(node: Node, address: dict[str, str], keystore: Path, truststore: Path) -> str:
    """What is added to `server.properties`, where the last line of a name counts."""
    outside = "".join(f",{kind.upper()}://{where}" for kind, where in address.items())
    login = "org.apache.kafka.common.security"
    return "\n".join(
        [
            f"listeners=BROKER://{node.address},CONTROLLER://{HOST}:{node.controller_port}{outside}",
            f"advertised.listeners=BROKER://{node.address}{outside}",
            "listener.security.protocol.map="
            "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT,PLAIN:SASL_PLAINTEXT,SCRAM:SASL_SSL,TLS:SSL",
            "listener.name.plain.sasl.enabled.mechanisms=PLAIN",
            f"listener.name.plain.plain.sasl.jaas.config={login}.plain.PlainLoginModule required user_me='{SECRET}';",
            "listener.name.scram.sasl.enabled.mechanisms=SCRAM-SHA-512",
            f"listener.name.scram.scram-sha-512.sasl.jaas.config={login}.scram.ScramLoginModule required;",
            f"ssl.keystore.type=PEM\nssl.keystore.location={keystore}",
            f"ssl.truststore.type=PEM\nssl.truststore.location={truststore}",
            "listener.name.tls.ssl.client.auth=required\n",
        ]
    )


@pytest.fixture(scope="module")
def secured(certificate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Real Kafka with three listeners: SASL PLAIN, SASL SCRAM over TLS, and TLS that wants the user's certificate."""
    folder = tmp_path_factory.mktemp("secured")
    port, controller_port, *outside = choose_ports([0] * (2 + len(KINDS)))
    node = Node(1, port, controller_port)
    address = {kind: f"{HOST}:{port}" for kind, port in zip(KINDS, outside, strict=True)}
    keystore = folder / "keystore.pem"
    keystore.write_bytes((certificate / "key.pem").read_bytes() + (certificate / "cert.pem").read_bytes())
    write_settings(folder, node, [node])
    with (folder / "server.properties").open("a") as file:
        file.write(secure_properties(node, address, keystore, certificate / "cert.pem"))
    class_path = resolve_jars()
    format_storage(folder, "A" * 22, class_path)
    server = start_server(folder, node, class_path, heap_mib=256)
    try:
        wait_until_ready([server])
        scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        change = UserScramCredentialUpsertion("me", scram, SECRET.encode())
        admin = AdminClient({"bootstrap.servers": node.address})
        for future in admin.alter_user_scram_credentials([change]).values():
            future.result(30)
        yield Secured(address, certificate)
    finally:
        server.process.kill()


@pytest.mark.parametrize("kind", KINDS)
def test_posts_come_out_as_embeddings(
    secured: Secured, kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """All roles and the client work with the properties of `[kafka]` alone, and no password is in what they say."""
    settings = secured.settings(kind, tmp_path, **{"client.id": "mine"})
    create_ray(settings)
    with Pipeline(settings) as pipeline:
        pipeline.wait_ready(WAIT_S)
        with manyray.Client(settings) as client:
            assert client.embed(["one", "two", "one"], timeout_s=WAIT_S).shape == (3, 384)
        topics = Topics.of(settings, version_of(settings))
        groups = [f"manyray.ingest.{settings.ray}", topics.dedup_group, topics.encode_group]
        admin = clients.admin_client(settings)
        for future in admin.describe_consumer_groups(groups).values():
            assert [member.client_id for member in future.result(30).members] == ["mine"]
    said = capfd.readouterr()
    assert SECRET not in said.out + said.err


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("plain", {"sasl.password": "not-it"}),
        ("scram", {"sasl.password": "not-it"}),
        ("scram", {"ssl.ca.location": ""}),
        ("tls", {"ssl.ca.location": ""}),
    ],
)
def test_who_is_not_let_in_is_told_why(secured: Secured, kind: str, wrong: dict[str, str], tmp_path: Path) -> None:
    """A wrong password and an unknown authority are one line that says so and names the properties, not the secret."""
    settings = secured.settings(kind, tmp_path, **wrong)
    with pytest.raises(Fatal, match=r"do not let us in \(.*(uthentication|certificate).*check .* sasl\.\*") as caught:
        list_partitions(settings)
    assert "not-it" not in str(caught.value)
