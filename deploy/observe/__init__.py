"""Logs, metrics and the live table."""
