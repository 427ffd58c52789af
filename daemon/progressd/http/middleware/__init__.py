"""Layers that each HTTP request passes before its route, and code shared with the routes."""
