"""Kafka in, Kafka out: settings, topics, ingest, dedup, encode, table, broker, metrics."""
