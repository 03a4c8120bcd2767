"""Reads and checks every key of the configuration, and rereads them while the service runs."""
