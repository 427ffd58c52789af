"""The only code that touches Hypercorn and h11."""
