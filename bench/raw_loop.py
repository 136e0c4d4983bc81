"""The yardstick: what one confluent-kafka process can do that consumes, parses, hashes and produces 1.5 kB a post.

At least once, nothing shared, no table, no transaction: run as a process of its own, so that its CPU is its own.
"""

import hashlib
import json
import sys

from confluent_kafka import Consumer, Producer

from streams import clock


def main(servers: str, source: str, target: str, count: int) -> None:
    """Pass `count` records on and print wall seconds and CPU seconds from the first record on."""
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": f"raw-{clock.random_id()}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    producer = Producer(
        {
            "bootstrap.servers": servers,
            "linger.ms": 5,
            "compression.type": "lz4",
            "batch.size": 1_000_000,
            "delivery.report.only.error": True,
        }
    )
    consumer.subscribe([source])
    vectors = [hashlib.shake_128(bytes([number])).digest(1536) for number in range(256)]
    done, began_s, began_cpu_s = 0, 0.0, 0.0
    while done < count:
        messages = consumer.consume(1_000, 0.5)
        if messages and not done:
            began_s, began_cpu_s = clock.perf_s(), clock.cpu_s()
        for message in messages:
            record = json.loads(message.value() or b"")
            digest = hashlib.blake2b(record["text"].encode(), digest_size=16).digest()
            while True:
                try:
                    producer.produce(target, digest + vectors[digest[0]], record["id"].encode())
                    break
                except BufferError:
                    producer.poll(0.05)
        done += len(messages)
        producer.poll(0)
    producer.flush()
    print(f"{clock.perf_s() - began_s} {clock.cpu_s() - began_cpu_s}")
    consumer.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
