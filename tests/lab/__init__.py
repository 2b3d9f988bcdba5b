"""Real fleets for tests: SSH nodes, container nodes and a Slurm cluster on one machine.

Everything here is root only, starts real daemons, and ends what it started. See README.md.
"""
