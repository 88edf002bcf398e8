"""The command line: parse, call, print."""

from lossatlas.cli.app import main

__all__ = ["main"]
