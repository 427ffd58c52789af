"""The only code that uses the internals of Hypercorn and h11."""
