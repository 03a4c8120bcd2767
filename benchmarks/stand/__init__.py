"""What every measurement stands on: the backend, the client, the services as processes, the machine."""
