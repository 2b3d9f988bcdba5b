"""What changed: two looks at the same nodes, or one against a baseline. Pure but for reading and writing files."""
