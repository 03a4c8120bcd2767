"""Answers the calls of the API, one file for each family of calls, with its routes."""
