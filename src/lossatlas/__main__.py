"""`python -m lossatlas` is the command `lossatlas`."""

from lossatlas.cli import main

main()
