"""`python -m manyray`: the command line, for where the `manyray` command is not on the path."""

from manyray.cli import main

main()
