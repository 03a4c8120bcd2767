"""Loads contenders alike and prints how they did: workloads, rounds, tables, targets and plots."""
