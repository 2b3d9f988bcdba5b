"""Entry point of the console script and of `python -m epdoctor`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line. `--version` alone needs nothing but the version."""
    if sys.argv[1:] == ["--version"]:
        from epdoctor import __version__

        sys.stdout.write(f"epdoctor {__version__}\n")
        return
    try:
        from epdoctor.cli import run

        run()
    except KeyboardInterrupt:  # Ctrl-C while modules were still being loaded
        os._exit(130)


if __name__ == "__main__":
    main()
