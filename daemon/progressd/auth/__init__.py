"""Identify and authorize clients: keys, tokens, origins, addresses and limits."""
