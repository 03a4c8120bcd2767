"""Contenders side by side under one load: workloads, rounds, tables, targets and plots of `make bench`."""
