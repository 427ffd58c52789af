"""Offline work on a state directory and a host: doctor, install, back up, check, export."""
