"""Real logs, read into events and played in time order."""
