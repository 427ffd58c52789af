"""Layers that each HTTP request passes before its route."""
