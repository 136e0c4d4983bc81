# pyright: reportPrivateImportUsage=false
# Confluent's names for them, which it exports and does not list.
"""The user of a secured cluster: a password that changes, and rights that are granted and revoked."""

from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Any

from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from streams.clock import random_id

GUARDED = {
    "listener.name.client.sasl.enabled.mechanisms": "SCRAM-SHA-512",
    "listener.name.client.scram-sha-512.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule "
    "required;",
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "super.users": "User:ANONYMOUS",  # who comes by another listener
}
"""A broker's properties: CLIENT asks for a password, and then for rights."""

KINDS = ("TOPIC", "GROUP", "TRANSACTIONAL_ID", "BROKER")
"""Of what there are rights to."""
_USER = "me"
_WAIT_S = 30.0


class Guard:
    """Knows one user, who at first may do everything. `KafkaException`: the brokers did not do it."""

    def __init__(self, servers: str) -> None:
        """`servers` are those of a listener that asks nobody."""
        self._admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
        self.kafka: dict[str, str] = {}
        """What the user's `[kafka]` has to say now."""
        self.change_password()
        for kind in KINDS:
            self.grant(kind)

    def change_password(self) -> None:
        """Take another password from now on, which `kafka` has; connections that are open stay so."""
        password = random_id()
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        change = UserScramCredentialUpsertion(_USER, info, password.encode())
        _await(self._admin.alter_user_scram_credentials([change]))
        self.kafka = {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": _USER,
            "sasl.password": password,
        }

    def grant(self, kind: str) -> None:
        """Let the user do everything with the resources of one of `KINDS`."""
        _await(self._admin.create_acls([AclBinding(*_everything(kind))]))

    def allow(self, kind: str, name: str, operations: Iterable[str]) -> None:
        """Let the user do these operations with one resource of a kind; `name` may end in `*`, as many do then."""
        pattern = ResourcePatternType.PREFIXED if name.endswith("*") else ResourcePatternType.LITERAL
        resource = (ResourceType[kind], name.removesuffix("*"), pattern, f"User:{_USER}", "*")
        bindings = [AclBinding(*resource, AclOperation[one], AclPermissionType.ALLOW) for one in operations]
        _await(self._admin.create_acls(bindings))

    def revoke(self, kind: str) -> None:
        """Take back what `grant` gave."""
        self._delete(*_everything(kind))

    def revoke_all(self) -> None:
        """Take back every right."""
        any_resource = (ResourceType.ANY, None, ResourcePatternType.ANY)
        self._delete(*any_resource, f"User:{_USER}", None, AclOperation.ANY, AclPermissionType.ANY)

    def _delete(self, *which: Any) -> None:
        for future in self._admin.delete_acls([AclBindingFilter(*which)]).values():
            assert future.result(_WAIT_S), f"no such right to take back: {which}"


def _everything(kind: str) -> tuple[Any, ...]:
    name = "kafka-cluster" if kind == "BROKER" else "*"  # Kafka knows one cluster
    pattern = (ResourceType[kind], name, ResourcePatternType.LITERAL)
    return *pattern, f"User:{_USER}", "*", AclOperation.ALL, AclPermissionType.ALLOW


def _await(futures: Mapping[Any, "Future[Any]"]) -> None:
    for future in futures.values():
        future.result(_WAIT_S)
