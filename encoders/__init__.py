"""Content to vectors: tokenising, batching, pooling, models. Knows neither Kafka nor Faust."""
