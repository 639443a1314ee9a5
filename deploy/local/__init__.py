"""One machine: a local Apache Kafka, the supervisor and a simulated audience."""
