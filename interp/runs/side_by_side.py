"""One prompt continued twice, without and with an intervention, and what each thinks of the other's words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from interp.errors import InterpError
from interp.lens.evaluating import in_evaluation_mode
from interp.lens.generation import at_least
from interp.lens.spelling import AS_THE_TOKENIZER_DOES
from interp.runs.generating import generate
from interp.runs.probing import Progress
from interp.vision.pictures import nested
from interp.vision.prompts import with_parts

if TYPE_CHECKING:
    import xarray as xr

    from interp.interventions.base import Intervention
    from interp.lens.protocol import InterventionLens

SIDES = ("unchanged", "intervened")


@in_evaluation_mode
def side_by_side(
    lens: InterventionLens,
    prompt: Any,
    intervention: Intervention,
    max_new_tokens: int = 64,
    *,
    chat: bool = False,
    images: Any = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Continue `prompt` greedily, once as the model is and once with `intervention` in force, and score both texts both
    ways. The prompt is one text, or one of anything else that a Lens reads; `images` are its images, as in
    `lens.generate(prompt, images=..., chat=...)`.

    Returns a dataset with dimensions `side` (whose text it is: "unchanged", "intervened") and `step` (new tokens; the
    shorter text is padded with empty tokens, id -1, NaN):
        token_id, token_text (untrusted);
        logprob (side, by, step): log-probability in nats of each token given those before it, `by` the unchanged model
            and by the intervened one, which reads the text token by token as in generation;
        shift (side, step): logprob by the intervened model less that by the unchanged one.
    The attribute `first_divergence` is the first step at which the texts differ, -1 where they do not, and `accounts`
    holds what `interp.runs.generating.generate` measured of both runs (bytes, seconds, notes), as JSON.

    The first new token comes from the prompt alone, so a cache policy gives it a shift of 0; an attention edit need
    not.

    Examples:
        >>> both = interp.side_by_side(lens, prompt, interp.StreamingLLM(budget=0.5), max_new_tokens=4)
        >>> both["shift"].dims
        ('side', 'step')
    """
    at_least(1, "max_new_tokens", max_new_tokens)
    if images is None:
        tokens, mask = lens.tokens_and_mask(prompt, chat=chat)
        read, seen = tokens, {}
    else:
        read, seen = _conversation(prompt, images) if chat else prompt, {"images": images}
        looked = lens.read_arguments(read, None, dict(seen), AS_THE_TOKENIZER_DOES, goes_on=True)
        tokens, mask = looked.tokens, looked.mask
    if tokens.shape[0] != 1 or (mask is not None and not bool(mask.all())):
        raise InterpError("side_by_side continues one prompt without padding.")
    accounts, texts = [], []
    for number, given in enumerate((None, intervention)):
        told = generate(lens, read, given, max_new_tokens, **seen, progress=_part(progress, number, 4))
        texts.append(torch.tensor([told.pop("new_token_ids")], device=tokens.device))
        accounts.append(told)
    steps = max(text.shape[1] for text in texts)
    logprob = np.full((2, 2, steps), np.nan, "float32")
    for side, text in enumerate(texts):
        logprob[side, 0, : text.shape[1]] = -lens.score(read, text, **seen)[0].cpu().numpy()
        with lens.apply(intervention):
            logprob[side, 1, : text.shape[1]] = -lens.score(read, text, chunk=1, **seen)[0].cpu().numpy()
        if progress is not None:
            progress(3 + side, 4)
    told_prompt = prompt if isinstance(prompt, str) else "".join(lens.to_str_tokens(tokens))
    return _dataset(lens, told_prompt, intervention, texts, logprob, accounts)


def _conversation(prompt: Any, images: Any) -> Any:
    """A text as the conversation that `chat=True` makes of it; what is one already as it is."""
    if not isinstance(prompt, str):
        return prompt
    (held,) = nested(images, 1, single=True)
    return [{"role": "user", "content": with_parts(prompt, len(held))}]


def _part(progress: Progress | None, number: int, of: int) -> Progress | None:
    """Progress of one part of several that take about as long."""
    if progress is None:
        return None
    return lambda done, total: progress(number * total + done, of * total)


def _dataset(
    lens: InterventionLens,
    prompt: str,
    intervention: Intervention,
    texts: list[torch.Tensor],
    logprob: np.ndarray,
    accounts: list[dict[str, Any]],
) -> xr.Dataset:
    from interp.interventions import parts
    from interp.results.described import described
    from interp.results.provenance import provenance

    steps = logprob.shape[-1]
    ids = np.full((2, steps), -1, "int64")
    written = np.full((2, steps), "", object)
    for side, text in enumerate(texts):
        ids[side, : text.shape[1]] = text[0].cpu().numpy()
        written[side, : text.shape[1]] = lens.to_str_tokens(text)
    differ = np.flatnonzero(ids[0] != ids[1])
    return described(
        {
            "token_id": (("side", "step"), ids, "token", "generated token, -1 where the text has ended"),
            "token_text": (("side", "step"), written, "text", "as the tokenizer prints it, untrusted"),
            "logprob": (("side", "by", "step"), logprob, "nats", "log-probability of the side's own text"),
            "shift": (
                ("side", "step"), logprob[:, 1] - logprob[:, 0], "nats",
                "log-probability by the intervened model less that by the unchanged one",
            ),
        },
        coords={"side": list(SIDES), "by": list(SIDES), "step": np.arange(steps)},
        attrs={
            "title": "Side by side",
            "description": "One prompt continued without and with an intervention, each text scored both ways.",
            "model": lens.cfg.model_name,
            "prompt": prompt,
            "interventions": json.dumps([part.settings() for part in parts(intervention)]),
            "first_divergence": int(differ[0]) if len(differ) else -1,
            "accounts": json.dumps(accounts),
            **provenance(lens.device),
        },
    )  # fmt: skip


def findings(result: xr.Dataset) -> list[str]:
    """Plain-text sentences computed from the result of `side_by_side`."""
    first = int(result.attrs["first_divergence"])
    shift = result["shift"].sel(side="unchanged").dropna("step").values
    steps = len(shift)
    told = f"Both write the same {steps} tokens." if first < 0 else f"The texts part at new token {first}."
    lost = int(shift.argmin())
    sentences = [
        told,
        f"The model's own continuation costs {float(-shift.mean()):+.3f} nats a token more with the intervention, "
        f"{float(-shift[lost]):+.2f} at new token {lost}, where it costs most.",
    ]
    unchanged, intervened = json.loads(result.attrs["accounts"])
    held, dense = intervened["cache"]["bytes"], unchanged["cache"]["bytes"]
    sentences.append(
        f"The cache holds {held / 2**20:.2f} MiB instead of {dense / 2**20:.2f} ({1 - held / dense:.0%} saved)."
    )
    return sentences
