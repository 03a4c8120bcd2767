"""Stands between the sockets and the endpoints: connections, CORS, and every error on its way out."""
