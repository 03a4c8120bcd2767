"""Decides who calls, and how much each caller may use. Never: what is asked for."""
