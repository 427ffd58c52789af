"""Talks to a progressd daemon from another program: submits jobs, asks for them, and watches them."""
