"""A company's own topics, read into our records and written to our topics, each event exactly once."""
