"""Measurements, repeatable with a command; never tests. `make bench` runs `benchmarks.__main__`."""
