"""From an error text to the cause, the proof and the fix.

One direction: logs -> scan (which lines say something) -> rank (which causes they point to) -> cascade (what
only follows) -> result. What a person typed goes through `typed` as well. Nothing here prints or reads a node.
"""
