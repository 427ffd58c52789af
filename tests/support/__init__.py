"""Shared by tests: daemons, clients, clocks and samples."""
