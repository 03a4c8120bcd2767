"""Provides what every measurement needs: backend, client, services as processes, the machine."""
