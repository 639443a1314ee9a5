"""The scoring worker: sequences and requests in, slates with exact propensities out."""
