"""The command line: a file for what a person types (`main`, `icl`, `evaluate`), others for what they share."""

from interp.cli.main import main

__all__ = ["main"]
