"""``python -m tests.bench``."""

import argparse
import sys

from tests.bench import catalogue, explain, fanout, formats, html, judge, lint, provision, startup


def main() -> int:
    """Run one measurement; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Measurements; nothing is asserted."
    )
    commands = parser.add_subparsers(required=True, metavar="WHAT")
    for module in (fanout, catalogue, judge, startup, explain, formats, html, lint, provision):
        module.add_parser(commands)
    options = parser.parse_args()
    status: int = options.call(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
