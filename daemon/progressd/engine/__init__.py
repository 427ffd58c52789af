"""Apply events, commit and publish them, and keep the state that requests read."""
