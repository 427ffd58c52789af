"""Sockets and connections: bind, accept, TLS, read the request head, route."""
