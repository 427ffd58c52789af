"""The settings: declared once, read from flags, the environment and a file, and documented."""
