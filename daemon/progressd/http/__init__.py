"""The REST API, server-sent events and the page, on Quart-Trio and Hypercorn."""
