"""What the service counts of itself, and `/metrics`. Counted once a stream, never once a chunk."""
