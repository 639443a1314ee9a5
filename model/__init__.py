"""Tensors in, tensors out: SASRec, its losses, policies and checkpoints. Never Kafka."""
