"""HTTP beside Kafka: a thin client of the same topics and of the same scoring worker."""
