"""Kafka in, Kafka out: records, the join, sequences, the Faust worker. Never torch."""
