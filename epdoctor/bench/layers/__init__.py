"""Layers of the ladder, one module each; see epdoctor/bench/ladder.py."""
