"""One question per file; report/ holds what they said."""
