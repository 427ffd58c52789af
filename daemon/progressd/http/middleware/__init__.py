"""Layers that each HTTP request passes before its route, and what they share with routes."""
