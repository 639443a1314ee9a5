"""Examples in, checkpoints out: predict, weigh, learn, publish."""
