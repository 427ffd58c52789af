"""Sockets and connections: bind, accept, TLS, route; and what requests over HTTP and WebSocket share."""
