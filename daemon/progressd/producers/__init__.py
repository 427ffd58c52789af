"""Events from producers: newline-delimited JSON from sockets and streams."""
