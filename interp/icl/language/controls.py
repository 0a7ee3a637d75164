"""What a similarity of two runs has to be held against before it says anything.

Deutch et al. 2024 showed that untrained weights, which learn nothing in context, reach much of the published similarity
of attention outputs. So `three_runs` computes no similarity without these: untrained weights, a Gaussian in place of
what fine-tuning changed, fine-tuning on a wrong task, fine-tuning on shuffled labels. Of the last two only the
fine-tuned side changes; the prompt keeps the right demonstrations. Dai et al.'s own random control is drawn from
U(0, 1), whose mean is not 0; a Gaussian's is.
"""

from __future__ import annotations

import copy

import torch

from interp.errors import InterpError
from interp.icl.language.changes import Change
from interp.lens.lens import Lens
from interp.lens.protocol import TextLens

Tensor = torch.Tensor

CONDITIONS = {
    "demos": "the prompt and fine-tuning have the same demonstrations: what the claim is about",
    "untrained": "the same, in a model of the same architecture with fresh random weights",
    "gaussian": "Gaussian numbers of the same size in place of what fine-tuning changed",
    "wrong_task": "fine-tuned on the demonstrations of another task, which the prompt does not have",
    "shuffled_labels": "fine-tuned on the same texts with their labels exchanged at random",
}
"""The first is the score, the others are its controls."""
CONTROLS = tuple(CONDITIONS)[1:]


def untrained(lens: TextLens, seed: int) -> Lens:
    """A Lens on a model of the same config, dtype and device with fresh weights, and the same tokenizer.

    The weights follow the architecture's own initialisation with the config's `initializer_range`. torch's random state
    is left as it was. Raises InterpError for what is not a Lens of the Lens' own kind, such as one around a bridge.
    """
    if type(lens) is not Lens:
        raise InterpError(
            f"untrained weights are drawn for a plain Lens, not for a {type(lens).__name__}; load the model itself "
            "with interp.load."
        )
    config = copy.deepcopy(lens.model.config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = type(lens.model)(config)
    model = model.to(device=lens.device, dtype=lens.model.dtype).eval()
    return Lens(model, lens.tokenizer, name=f"{lens.cfg.model_name}, untrained")


def gaussian(like: Change, seed: int) -> Change:
    """Gaussian numbers in place of all that a run changed, of the same length in each row as what they replace."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=generator) * (x != 0)  # padding stays padding
        scaled: Tensor = torch.nn.functional.normalize(noise, dim=-1) * x.norm(dim=-1, keepdim=True)
        return scaled

    return Change(
        attn_out=drawn(like.attn_out),
        scores=drawn(like.scores),
        scores_update=drawn(like.scores_update),
        demo_scores=[drawn(scores) for scores in like.demo_scores],
        logits=drawn(like.logits - like.logits.mean(-1, keepdim=True)),
    )
