"""The REST side: Quart-Trio on Hypercorn, in the daemon's process and on its port."""
