"""What the studies of a language model ask of its layers: attention in each of them, of one shape."""

from __future__ import annotations

from interp.errors import UnsupportedModelError
from interp.lens.protocol import TextLens


def one_text(lens: TextLens, what: str) -> None:
    """Raise UnsupportedModelError for an encoder-decoder, which reads a text in one place and goes on in another."""
    if lens.anatomy.decoder is not None:
        raise UnsupportedModelError(
            f"{what}: {lens.cfg.architecture} reads a text with its encoder and writes with its decoder, and this is "
            "about models that go on with what they read."
        )


def attention_everywhere(lens: TextLens, what: str) -> None:
    """Raise UnsupportedModelError for a hybrid, whose layers are not all attention, heads that differ by layer, or an
    encoder-decoder."""
    one_text(lens, what)
    without = lens.cfg.n_layers - len(lens.cfg.attention_layers)
    if without:
        raise UnsupportedModelError(
            f"{what} compares the attention of all layers, and {without} of {lens.cfg.n_layers} layers of "
            f"{lens.cfg.architecture} have none."
        )
    shapes = {(b.seen["n_heads"], b.seen["d_head"]) for _, b in lens.anatomy.attending if b.seen}
    if len(shapes) > 1:
        raise UnsupportedModelError(f"{what} compares layers, and those of {lens.cfg.architecture} differ in heads.")
