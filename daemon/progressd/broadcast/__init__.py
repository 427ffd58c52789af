"""Topics, fan-out and what each connection has still to be sent."""
