"""Trains the models that ship with the library and writes them again: `python -m interp.icl.weights`."""

from interp.icl.weights import write

write()
