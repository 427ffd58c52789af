"""The settings: declared once, read from flags, environment and file, and documented."""
