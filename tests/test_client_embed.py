"""`embed` on a running pipeline: vectors in the order of the texts, and what is wrong by its index."""

from collections.abc import Iterator

import numpy as np
import pytest

from encoders.load import load_encoder
from manyray.client import Client
from manyray.embedding_call import collect
from schemas.errors import Reject, Retry
from streams import clients, clock
from streams.broker import Broker
from streams.control import create_ray
from streams.settings import load_settings
from streams.up import Pipeline
from streams.version import version_of

pytestmark = pytest.mark.broker


@pytest.fixture(scope="module")
def pipeline(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """One pipeline for this module."""
    name = clock.random_id()
    settings = load_settings(
        bootstrap_servers=broker.bootstrap_servers,
        data_dir=tmp_path_factory.mktemp("data"),
        ray=f"ray{name}",
        posts_topics=(f"posts{name}",),
        model="hash",
    )
    create_ray(settings)
    with Pipeline(settings) as pipeline:
        pipeline.wait_ready(90)
        yield pipeline


@pytest.fixture
def client(pipeline: Pipeline) -> Iterator[Client]:
    """A client of that pipeline."""
    with Client(pipeline.settings) as client:
        yield client


def test_row_i_is_the_vector_of_text_i(client: Client):
    """The vectors are the encoder's own, new or cached, with the same text as often as wanted."""
    texts = ["b", "a", "b", "line\u2028separator", "emoji 🎉"]
    encoder = load_encoder("hash")
    wanted = encoder.encode(encoder.tokenise(texts), 1_000).vectors
    for _ in range(2):
        vectors = client.embed(texts)
        assert vectors.dtype == np.float32
        np.testing.assert_array_equal(vectors, wanted)


def test_no_texts_are_no_vectors(client: Client):
    """Nothing is sent for nothing."""
    assert client.embed([]).shape == (0, 0)


@pytest.mark.parametrize(
    ("bad", "reason"), [("", "no_text"), ("x" * 70_000, "text_too_long"), ("\ud800", "not_utf8"), (3, "malformed")]
)
def test_a_bad_text_is_named_by_its_index(client: Client, bad: str, reason: str):
    """Whether the client or the pipeline sees it, the error has the index and the reason; the neighbours live."""
    with pytest.raises(Reject, match=f"{reason}: text 1") as caught:
        client.embed(["left", bad, "right"])
    assert caught.value.reason == reason
    assert client.embed(["left", "right"]).shape == (2, 384)


def test_without_an_answer_it_says_what_to_look_at(pipeline: Pipeline, client: Client):
    """When no encoder runs, waiting ends with how many are missing and what has to run."""
    pipeline.stop_role("encode")
    with pytest.raises(Retry, match=r"1 of 1 texts had no embedding after 2 s.*manyray up"):
        client.embed([clock.random_id()], timeout_s=2)
    pipeline.start_role("encode")
    pipeline.wait_ready(90)
    assert client.embed(["served again"]).shape == (1, 384)


@pytest.mark.parametrize(
    ("ray", "version", "error"),
    [("ours", "all", Reject), ("ours", "ours", Reject), ("ours", "another", Retry), ("another's", "all", Retry)],
)
def test_only_its_own_ray_and_version_reject_a_text(pipeline: Pipeline, ray: str, version: str, error: type[Exception]):
    """Rays share the rejected topic: what another one, or another version, does not take is waited for all the same."""
    settings, post_id = pipeline.settings, clock.random_id()
    producer = clients.producer(settings)

    def publish() -> None:
        rejected_by = settings.ray if ray == "ours" else "ray-of-another"
        headers = {"manyray-ray": rejected_by, "manyray-reason": "no_text", "manyray-topic": "nowhere"}
        if version != "all":
            headers["manyray-version"] = version_of(settings) if version == "ours" else "b" * 12
        producer.produce("rejected", b"", key=post_id, headers=headers | {"manyray-detail": ""})
        assert producer.flush(30) == 0

    with pytest.raises(error):
        collect(settings, [post_id], publish, 10.0 if error is Reject else 2.0)
