"""The client: publish posts, subscribe to embeddings, or do both at once with `embed`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from weakref import WeakSet

import numpy as np
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from manyray.embedding_call import collect
from manyray.promoted import PromotedSubscription
from manyray.rays import find_embeddings_topic, open_control
from manyray.subscription import Subscription
from schemas.errors import Fatal, Reject, Retry
from schemas.post import Post, decode_deletion, encode_post
from schemas.vectors import Matrix
from streams import clients, clock
from streams.settings import Settings, load_settings
from streams.topics import list_partitions

AnyPost = Post | tuple[str, str] | Mapping[str, Any] | str

_POLL_EVERY = 500  # posts between two looks at delivery errors and two calls of `on_progress`
_FLUSH_S = 0.2


def connect(bootstrap_servers: str | None = None, *, config: str | Path | None = None, **settings: object) -> "Client":
    """Connect to a pipeline: to the brokers given, else those of `manyray.toml` and the environment, else the
    embedded broker that `manyray up` runs on the data directory.

    `config` names another settings file; `settings` are any of its keys, such as `model="hash"`, and win over it.

    Raises:
        Fatal: a setting is wrong, or no broker answers.
    """
    path = Path(config) if config is not None else None
    return Client(load_settings(path, bootstrap_servers=bootstrap_servers, **settings))


class Client:
    """A connection to a pipeline, and a context manager that closes it. Used by one thread.

    with manyray.connect() as client:
        client.publish([("1", "hello")])
        for batch in client.subscribe("textray", group="mine"):
            print(batch.ids, batch.vectors.shape)
    """

    def __init__(self, settings: Settings) -> None:
        """Use `connect`. Raises Fatal if no broker answers."""
        self.settings = settings
        self._producer: Producer | None = None
        # Weak: a loop that was left with `break` gives its partitions back as soon as nobody holds it any more.
        self._subscriptions: WeakSet[Subscription] = WeakSet()
        self._failed: list[KafkaError] = []
        list_partitions(settings)

    def publish(
        self,
        posts: Iterable[AnyPost],
        topic: str | None = None,
        *,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> int:
        """Publish posts and return how many, after the brokers have them all.

        A post is a `Post`, a tuple (id, text), a mapping with `id` and `text`, or a text alone, which gets a random
        id. `topic` is the first of the setting posts_topics if not given. Any iterable will do: at most 64 MiB wait
        to be sent. `on_progress` is told now and then how many were taken so far. What a post holds is judged by the
        pipeline: bad ones come out in the topic `rejected`.

        Raises:
            Reject: something among `posts` is no post; all before it were published.
            Retry: some posts were not delivered; publishing them again computes nothing twice.
            Fatal: the topic is missing, or may not be written to.
        """
        records = (to_record(post, f"post {count}") for count, post in enumerate(posts, 1))
        return self._send(records, topic, on_progress)

    def delete(self, ids: Iterable[str], topic: str | None = None) -> int:
        """Delete posts by their ids and return how many, after the brokers have been told of them all.

        `topic` is the one that they were published to. Every version of the ray then has tombstones for them, records
        without a value, behind what it has of them: `Batch.deleted_ids`.

        Raises:
            Reject: something among `ids` is no id; all before it were deleted.
            Retry: some deletions were not delivered; do it again.
            Fatal: the topic is missing, or may not be written to.
        """
        if isinstance(ids, str):
            raise Reject("malformed", "delete takes a list of ids, not one id: delete([id])")
        return self._send(((_to_key(post_id), None) for post_id in ids), topic, lambda _: None)

    def subscribe(
        self,
        ray: str,
        group: str,
        *,
        start: Literal["earliest", "latest"] = "earliest",
        batch_posts: int = 500,
        wait_s: float = 0.2,
        idle_s: float | None = None,
        on_switch: Callable[[str, str], object] = lambda _before, _now: None,
    ) -> Subscription:
        """Iterate over batches of a ray's embeddings, as a member of the consumer group `group`.

        `ray` is `textray@<version>`, or `textray` for the version that this name means: when another one is promoted,
        the subscription goes on in its embeddings where those of the one before end, and calls `on_switch` with both
        versions; each batch is of one, and says of which.
        `start` says where a new group begins. A batch has at most `batch_posts` embeddings, and fewer where a
        partition ends or no more arrive within `wait_s`. The iteration is endless, or ends when nothing arrived for
        `idle_s`. Only what was consumed is committed: see `Subscription`.

        Raises:
            Fatal: there is no such ray, or no such version of it.
            Retry: the brokers did not answer in time.
        """
        how: dict[str, Any] = {
            "batch_posts": batch_posts,
            "wait_s": wait_s,
            "idle_s": idle_s,
            "on_close": self._subscriptions.discard,
        }
        if "@" in ray:
            topic = find_embeddings_topic(self.settings, ray)
            consumer = clients.consumer(self.settings, group, auto_offset_reset=start)
            subscription = Subscription(consumer, topic, **how)
        else:
            with ExitStack() as held:
                control = held.enter_context(closing(open_control(self.settings, ray)))
                consumer = clients.consumer(self.settings, group, auto_offset_reset=start, enable_partition_eof=True)
                held.callback(consumer.close)
                subscription = PromotedSubscription(consumer, ray, control, start=start, on_switch=on_switch, **how)
                held.pop_all()  # it closes them
        self._subscriptions.add(subscription)
        return subscription

    def embed(self, texts: Sequence[str], timeout_s: float = 60.0) -> Matrix:
        """Publish texts and wait for their vectors: float32, shape (len(texts), dims), row i for texts[i].

        Without texts the shape is (0, 0), as only an answer tells dims. Everything that arrives meanwhile is read, so
        this is for moments and small numbers: to follow a stream, `publish` and `subscribe`.

        Raises:
            Reject: a text was rejected; the error names its index. The others are computed all the same, so that a
                second call without it is answered from the table.
            Retry: not all came within `timeout_s`.
            Fatal: a topic is missing.
        """
        if isinstance(texts, str):
            raise Reject("malformed", "embed takes a list of texts, not one text: embed([text])")
        if not texts:
            return np.empty((0, 0), dtype=np.float32)
        prefix = f"embed-{clock.random_id()}-"
        posts = [(f"{prefix}{index}", text) for index, text in enumerate(texts)]
        for index, post in enumerate(posts):
            to_record(post, f"text {index}")  # what no record can hold is told before anything is sent
        return collect(self.settings, [key for key, _ in posts], lambda: self.publish(posts), timeout_s)

    def close(self) -> None:
        """Close it and its subscriptions; a batch that is not known to be consumed is not committed."""
        for subscription in list(self._subscriptions):
            subscription.close(commit=False)
        self._producer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """As `close`."""
        self.close()

    def _send(
        self, records: Iterable[tuple[bytes, bytes | None]], topic: str | None, on_progress: Callable[[int], None]
    ) -> int:
        topic = topic or self.settings.posts_topics[0]
        if topic not in list_partitions(self.settings):
            raise Fatal(f"topic {topic} is missing: run `manyray topics create`")
        count = 0
        try:
            for count, (key, value) in enumerate(records, 1):
                self._produce(topic, key, value)
                if count % _POLL_EVERY == 0:
                    self._poll()
                    on_progress(count)
        finally:
            self._flush()
        on_progress(count)
        return count

    def _produce(self, topic: str, key: bytes, value: bytes | None) -> None:
        if self._producer is None:
            self._producer = clients.producer(self.settings)
        try:
            clients.produce(self._producer, topic, value, key=key, on_delivery=self._on_delivery)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
                raise Reject(
                    "text_too_long", f"a post of {len(value or b'')} bytes is more than a record holds"
                ) from None
            self._failed.append(error.args[0])
            self._raise_failed()  # which drops the producer: one that cannot go on says so at every call

    def _on_delivery(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self._failed.append(error)

    def _poll(self) -> None:
        """Serve delivery reports; raise if there are failures among them."""
        if self._producer is not None:
            self._producer.poll(0)
        self._raise_failed()

    def _flush(self) -> None:
        while self._producer is not None and self._producer.flush(_FLUSH_S):
            self._raise_failed()
        self._raise_failed()

    def _raise_failed(self) -> None:
        """Raise for posts that were not delivered, after dropping those that wait behind them."""
        if not self._failed:
            return
        if self._producer is not None:
            self._producer.purge()
            self._producer.flush(_FLUSH_S)
        failed, self._failed, self._producer = self._failed, [], None
        first = failed[0]
        if first.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            raise Fatal(f"not allowed to publish: {first.str()}; grant it in the ACLs")
        raise Retry(f"{len(failed)} posts were not delivered ({first.str()}): publish them again")


def to_record(post: AnyPost, which: str) -> tuple[bytes, bytes]:
    """Make a record's key and value of what `publish` takes; `which` names it in errors.

    Raises:
        Reject: it is no post.
    """
    match post:
        case Post():
            made = post
        case str():
            made = Post(clock.random_id(), post)
        case (str(post_id), str(text)) | {"id": str(post_id), "text": str(text)}:
            made = Post(post_id, text)
        case _:
            wanted = "a Post, a tuple (id, text), a mapping with id and text, or a text, all of them strings"
            raise Reject("malformed", f"{which} is of type {type(post).__name__} and not {wanted}")
    try:
        return made.id.encode(), encode_post(made)
    except UnicodeEncodeError:
        raise Reject("not_utf8", f"{which} holds a lone surrogate, which UTF-8 has no bytes for") from None


def _to_key(post_id: object) -> bytes:
    """The key that a post of that id is deleted by.

    Raises:
        Reject: it is no id.
    """
    if not isinstance(post_id, str):
        raise Reject("malformed", f"an id is of type {type(post_id).__name__} and not a string")
    try:
        key = post_id.encode()
    except UnicodeEncodeError:
        raise Reject("not_utf8", "an id holds a lone surrogate, which UTF-8 has no bytes for") from None
    decode_deletion(key)
    return key
