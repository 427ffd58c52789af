"""The benchmark: the daemon and its peers, side by side under the same load. `python -m benchmarks --help`."""
