"""What was trained, published and scheduled, in a SQL database."""
