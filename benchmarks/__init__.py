"""Measures; never tests. `make bench` runs `benchmarks.__main__`, the comparison."""
