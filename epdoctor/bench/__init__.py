"""The active ladder: prove layer by layer that nodes can talk as expert parallelism needs it.

    layers/*.py (what to measure, what to expect) -> Fleet of Workers over SSH -> ops/*.py on the nodes
    measurements -> verdict -> report

Only here does epdoctor start programs that do work on a node; they end with the connection. See
docs/design.md section 9.
"""
