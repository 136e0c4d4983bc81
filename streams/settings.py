"""Settings: one frozen value from `manyray.toml`, the environment (`MANYRAY_...`) and flags, the last winning."""

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from schemas.errors import Fatal

PREFIX = "MANYRAY_"
KAFKA_PREFIX = PREFIX + "KAFKA__"
DEFAULT_FILE = Path("manyray.toml")
_NOT_SETTINGS = {PREFIX + "CONFIG"}  # names the file; `_RESTARTS` and the like are set by `manyray up` for its children
_SECRET_WORDS = ("password", "passphrase", "secret", "jaas", "key.pem", "oauthbearer.config", "token")


class Settings(BaseModel):
    """Every setting of Manyray; a field's description is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bootstrap_servers: str = Field(
        default="", description="Kafka brokers, HOST:PORT[,HOST:PORT]; empty means the embedded broker of data_dir"
    )
    data_dir: Path = Field(
        default=Path("manyray-data"), description="folder of the embedded broker's log and of the tables"
    )
    ray: str = Field(default="textray", pattern=r"^[a-z][a-z0-9_-]{0,63}$", description="name of the served ray")
    model: str = Field(
        default="minilm",
        description="encoder: minilm, hash (for load tests), a local model folder, a hub id ORG/NAME, or a file of "
        "`manyray pin`",
    )
    revision: str = Field(default="", description="commit hash of a hub model, 40 hexadecimal digits; hub ids need it")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="numeric type of the computation; auto is float32 on CPU and bfloat16 on a GPU, "
        "which then share a version",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="longer posts are truncated to this many tokens; the model's own limit if unset",
    )
    salt: SecretStr = Field(
        default=SecretStr(""),
        description="tenant salt: part of every fingerprint, so that tenants share no vectors",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N; auto takes a GPU where there is one")

    posts_topics: tuple[str, ...] = Field(
        default=("posts",), description="input topics; outside a file separated by commas"
    )
    backfill_topics: tuple[str, ...] = Field(
        default=(), description="more input topics, of posts that are not urgent: the encoder computes others first"
    )
    partitions: int = Field(default=4, ge=1, le=256, description="partitions of every topic that Manyray creates")
    replication: int = Field(default=1, ge=1, description="replicas of every topic that Manyray creates")

    text_bytes_max: int = Field(default=65_536, ge=1, le=262_144, description="a post with a longer text is rejected")
    chunk_posts_max: int = Field(default=500, ge=1, le=10_000, description="most posts in one internal record")
    delivery: Literal["exactly_once", "at_least_once"] = Field(
        default="exactly_once",
        description="at_least_once shows embeddings before a commit, some twice after a crash; all roles need the same",
    )
    commit_interval_ms: int = Field(
        default=50,
        ge=1,
        le=5_000,
        description="how long one transaction of ingest or dedup gathers work: more is cheaper, less is sooner",
    )
    transaction_posts_max: int = Field(
        default=20_000, ge=1, le=100_000, description="most posts that one transaction gathers; bounds memory"
    )
    transaction_timeout_ms: int = Field(
        default=10_000,
        ge=1_000,
        le=900_000,
        description="a dead process's transaction stalls readers this long, and until the brokers next look for such; "
        "slower commits fail",
    )
    stall_timeout_s: float = Field(
        default=60.0,
        ge=1,
        description="a role that takes none of the records waiting in a partition for so long is ended",
    )
    accept_gaps: bool = Field(
        default=False,
        description="a role goes on where records are missing, losing those posts, instead of stopping",
    )

    table_ram_mib: int = Field(default=64, ge=0, description="vectors of all partitions kept in RAM before RocksDB")
    table_disk_mib: int = Field(
        default=8_192, ge=64, description="vectors of all partitions kept on disk; the oldest half goes when full"
    )
    restore_wait_s: float = Field(
        default=60.0, ge=0, description="after assignment, look-ups wait at most this long for the table to refill"
    )

    batch_tokens: int | None = Field(
        default=None, ge=64, description="padded tokens computed at once; by device if unset"
    )
    window_tokens: int | None = Field(
        default=None,
        ge=64,
        description="tokens gathered, computed and committed together by the encoder; by device if unset",
    )
    encode_wait_ms: int = Field(
        default=20,
        ge=1,
        le=10_000,
        description="a window that is not full is computed when its oldest post waited this",
    )
    recent_vectors_mib: int = Field(
        default=256, ge=0, description="vectors the encoder remembers, so that posts in flight are computed once"
    )

    metrics_host: str = Field(default="127.0.0.1", description="address of the Prometheus endpoint")
    metrics_port: int = Field(
        default=0,
        ge=0,
        le=65_535,
        description="port of the Prometheus endpoint, under `up` the first of as many as processes; 0 takes "
        "9101 ingest, 9102 dedup, 9103 encode, or the next free one",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least level logged")
    kafka: dict[str, str] = Field(
        default_factory=dict, repr=False, description="librdkafka properties passed through, such as sasl.username"
    )

    @field_validator("posts_topics", "backfill_topics", mode="before")
    @classmethod
    def _many(cls, value: object) -> object:
        """`a,b` is two topics; no Kafka topic has a comma."""
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("posts_topics")
    @classmethod
    def _some(cls, topics: tuple[str, ...]) -> tuple[str, ...]:
        if not topics:
            raise PydanticCustomError("no_topic", "name at least one topic")
        return topics

    @field_validator("backfill_topics")
    @classmethod
    def _others(cls, topics: tuple[str, ...], known: ValidationInfo) -> tuple[str, ...]:
        if both := set(topics) & set(known.data.get("posts_topics", ())):
            raise PydanticCustomError(
                "two_lanes", "{topic} is one of posts_topics too: name it in one of them", {"topic": min(both)}
            )
        return topics

    @field_validator("kafka", mode="before")
    @classmethod
    def _text_values(cls, value: object) -> object:
        """TOML numbers and booleans are spelt as librdkafka reads them."""
        if not isinstance(value, Mapping):
            return value
        items = cast(Mapping[str, Any], value).items()
        return {key: str(item).lower() if isinstance(item, bool) else str(item) for key, item in items}

    def redacted(self) -> dict[str, Any]:
        """The settings for logs and people: secrets are masked."""
        shown = self.model_dump(mode="json")
        shown["kafka"] = {
            key: "***" if any(word in key for word in _SECRET_WORDS) else value for key, value in self.kafka.items()
        }
        return shown


def load_settings(config: Path | None = None, **flags: object) -> Settings:
    """Settings from the file, the environment and `flags`; flags that are None are not given.

    `config`, else `MANYRAY_CONFIG`, names the file; `manyray.toml` in the working folder is read if it is there.

    Raises:
        Fatal: a key that is unknown (the nearest known one is named), a bad value, or a file that cannot be read.
    """
    named = config or (Path(os.environ[PREFIX + "CONFIG"]) if os.environ.get(PREFIX + "CONFIG") else None)
    path = named or DEFAULT_FILE
    values = _from_file(path) if named or path.exists() else {}
    given: dict[str, Any] = {key: value for key, value in flags.items() if value is not None}
    for stronger in (_from_environment(os.environ), given):
        kafka = values.get("kafka", {})
        values.update(stronger)
        if isinstance(values.get("kafka"), Mapping):  # of its properties each is a setting
            values["kafka"] = {**kafka, **values["kafka"]}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise Fatal(_explain(error)) from None


def _from_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Fatal(f"settings file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Fatal(f"settings file {path} is not TOML: {error}") from None
    for key in values:
        _check_known(key, f"in {path}")
    if "kafka" in values:
        if not isinstance(values["kafka"], dict):
            raise Fatal(f"kafka in {path} must be a table: [kafka]")
        values["kafka"] = _flatten(values["kafka"])
    return values


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`sasl.username = "x"` is nested tables to TOML and one property to librdkafka."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat.update(_flatten(cast(dict[str, Any], value), f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in environment.items():
        if not name.startswith(PREFIX) or name in _NOT_SETTINGS or name.startswith(PREFIX + "_"):
            continue
        if name.startswith(KAFKA_PREFIX):
            # No librdkafka property has an underscore, and no environment variable a dot.
            values.setdefault("kafka", {})[name.removeprefix(KAFKA_PREFIX).lower().replace("_", ".")] = value
            continue
        key = name.removeprefix(PREFIX).lower()
        if key == "kafka":
            raise Fatal(f"{name} has no value of its own: {KAFKA_PREFIX}SASL_USERNAME is sasl.username, and so on")
        _check_known(key, f"in the environment ({name})")
        values[key] = value
    return values


def _check_known(key: str, where: str) -> None:
    known = list(Settings.model_fields)
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known ones are {', '.join(known)}"
        raise Fatal(f"unknown setting {key} {where}: {hint}")


def _explain(error: ValidationError) -> str:
    """One line for the first thing wrong, the value left out where it may be secret."""
    first = error.errors(include_url=False, include_context=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        _check_known(key, "in the flags")
    secret = key == "salt" or key.startswith("kafka")
    given = "" if secret else f" = {first['input']!r}"
    return f"setting {key}{given}: {first['msg']}; it is the {Settings.model_fields[key.split('.')[0]].description}"
