"""Identify and authorize clients: keys, tokens, addresses and limits."""
