"""Measurements, run by hand: ``python -m tests.bench fanout | judge | startup | explain``.

Figures are printed, never asserted: they belong to the machine they were taken on.
"""
