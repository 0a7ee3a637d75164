"""The command line: a file for what a person types (`main`, `icl`), one for what they share (`terminal`)."""

from interp.cli.main import main

__all__ = ["main"]
