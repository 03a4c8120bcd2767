"""What `deploy/` says, against the code, its neighbours and the real programs; no Docker, no cluster."""
