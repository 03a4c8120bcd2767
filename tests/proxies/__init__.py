"""Real reverse proxies in front of the service, each with its recipe of `deploy/proxies/`."""
