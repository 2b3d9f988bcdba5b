"""Reaching nodes: who they are, how to get there, and one bounded fan-out over all of them."""
