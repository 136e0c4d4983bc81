"""Manyray's own client: publish, embed, subscribe.

python examples/client.py        # beside a running `manyray up`
"""

import manyray

with manyray.connect() as client:
    client.publish([("note-1", "frost on the windscreen in May"), ("note-2", "our train is late again")])

    vectors = client.embed(["a cold morning", "delays on the railway"])  # publishes, waits, returns (2, dims)
    print(vectors.shape, vectors.dtype)

    with client.subscribe("textray", group="example") as batches:
        for batch in batches:  # a batch counts as consumed when the next is asked for
            for post_id, vector in zip(batch.ids, batch.vectors, strict=True):
                print(post_id, (vectors @ vector).round(2))
            if "note-2" in batch.ids:
                break
