"""The command line: parse, call, print."""

import sys


def main() -> None:
    """Run the command; models and data of one's own are looked for in the current folder too.

    Everything is imported in here, so that Ctrl-C is answered from the first moment on.
    """
    try:
        from lossatlas.cli.app import app

        sys.path.append("")  # the current folder, and last: a file there never stands in for a library
        app()
    except KeyboardInterrupt:
        sys.exit(130)
