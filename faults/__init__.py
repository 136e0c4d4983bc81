"""Faults on purpose: real Kafka servers that are killed, stopped and cut off from each other and from their clients."""
