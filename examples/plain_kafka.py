"""Posts in and embeddings out with nothing of Manyray's but its published schema: confluent-kafka and protobuf.

python examples/plain_kafka.py HOST:PORT embeddings.textray.VERSION
"""

import json
import sys

import numpy as np
from confluent_kafka import Consumer, Producer

from schemas.public_pb2 import Embedding  # made from schemas/public.proto; any language's protoc makes yours

servers, topic = sys.argv[1:]
posts = {"plain-1": "a cat on a mat", "plain-2": "a kitten on a rug", "plain-3": "interest rates rise"}

producer = Producer({"bootstrap.servers": servers})
for post_id, text in posts.items():
    producer.produce("posts", json.dumps({"id": post_id, "text": text}))
producer.flush()

consumer = Consumer(
    {
        "bootstrap.servers": servers,
        "group.id": "plain",
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",  # librdkafka's default; a Java client has to say so
    }
)
consumer.subscribe([topic])
vectors: dict[str, np.ndarray] = {}
while len(vectors) < len(posts):
    message = consumer.poll(1.0)
    if message is None or message.error():
        continue
    embedding = Embedding.FromString(message.value() or b"")
    if embedding.post_id in posts:
        vectors[embedding.post_id] = np.frombuffer(embedding.vector, dtype="<f4")
consumer.close()

print(f"cat, kitten   {vectors['plain-1'] @ vectors['plain-2']:.2f}")
print(f"cat, interest {vectors['plain-1'] @ vectors['plain-3']:.2f}")
