"""Identify clients and decide what they may do: keys, tokens, origins, addresses and limits."""
