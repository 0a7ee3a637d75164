"""`python -m interp.cli`: the command line without its script."""

from interp.cli.main import main

main()
