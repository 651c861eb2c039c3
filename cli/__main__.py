"""Entry point of `python -m cli`, which the launcher starts so that no console script has to be on the path."""

from cli.app import main

main()
