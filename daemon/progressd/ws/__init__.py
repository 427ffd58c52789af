"""The one port, and the WebSocket side of it."""
