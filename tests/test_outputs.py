"""A spec's file and each way to store numbers, through the whole pipeline: what subscribers get."""

from pathlib import Path

import numpy as np
import pytest

from encoders.load import load_encoder
from manyray.client import Client
from schemas.public_pb2 import BINARY, CACHED, COMPUTED, FLOAT16, INT8
from schemas.vectors import VectorForm
from streams import clock
from streams.control import create_ray
from streams.settings import Settings
from streams.up import Pipeline
from streams.version import spec_of, version_of

pytestmark = pytest.mark.broker

KINDS = {"float16": FLOAT16, "int8": INT8, "binary": BINARY}


@pytest.mark.parametrize("output", KINDS)
def test_vectors_go_through_as_the_spec_stores_them(settings: Settings, tmp_path: Path, output: str):
    """A record says how to read it, a client gives float32, and what is cached is what was computed."""
    spec = tmp_path / "spec.toml"
    spec.write_text(f'model = "hash:64"\noutput = "{output}"\n' + ("scale = 0.002\n" if output == "int8" else ""))
    settings = settings.model_copy(update={"model": str(spec)})
    create_ray(settings)
    texts = {f"{life}-{number}": f"text {number}" for life in ("new", "again") for number in range(20)}
    with Pipeline(settings) as pipeline, Client(pipeline.settings) as client:
        pipeline.wait_ready(90)
        found = []
        with client.subscribe(f"{settings.ray}@{version_of(settings)}", clock.random_id(), idle_s=60) as batches:
            for life in ("new", "again"):
                client.publish([(post_id, text) for post_id, text in texts.items() if post_id.startswith(life)])
                wanted = len(found) + 20
                while len(found) < wanted:
                    batch = next(batches)
                    found += zip(batch.ids, batch.vectors, batch.embeddings, strict=True)
    encoder, form = load_encoder("hash:64"), spec_of(settings).form
    assert form == VectorForm(output, 0.002 if output == "int8" else 0.0)
    stored = form.pack(encoder.encode(encoder.tokenise([f"text {number}" for number in range(20)]), 64).vectors)
    for post_id, vector, embedding in found:
        wanted = stored[int(post_id.split("-")[1])].tobytes()
        assert embedding.vector == wanted
        assert (embedding.dtype, embedding.dims) == (KINDS[output], 64)
        assert np.allclose(vector, form.unpack(wanted, 1)[0], rtol=1e-6)
        assert embedding.origin == (COMPUTED if post_id.startswith("new") else CACHED)
    assert {post_id for post_id, _, _ in found} == set(texts)
