"""Every key, from the file to a checked value, and rereading them while the service runs."""
