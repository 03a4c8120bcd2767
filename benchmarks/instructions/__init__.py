"""Counts instructions: what a chunk, a request and a save cost, in a figure that noise can't move."""
