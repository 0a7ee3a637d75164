"""Writes `interventions.md` from the interventions themselves: `python -m docs.write_interventions`.

Formulas, sources, settings and what differs from the paper or its code come from the docstrings and fields.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path

from docs.sections import cell, markdown, settings
from interp.interventions import Intervention, available

PAGE = Path(__file__).with_name("interventions.md")

HEAD = """# Interventions

`with lens.apply(interp.ThinK(ratio=0.5) | interp.SnapKV(budget=0.2)): lens.generate(...)` changes the running model and
nothing in it: leaving the block restores it exactly. There are two families, and `|` puts members of both together.

An *attention edit* changes the attention that rows pay to groups of keys, in layers and heads of your choice, with a
cache or without: in every call inside the block, while a prompt is read, in pieces too, and at every generated token.
Keys are named by their place in their own text, counted from 0, whatever padding stands before it and wherever a cache
policy stored them. Edits have two stages. *Logit edits* act first, on the logits as they enter the softmax: scale and
softcap applied, beside the mask, so that what is hidden stays hidden whatever an edit says; they scale the logits of a
group, add a bias, or set them. *Pattern edits* act after the softmax and multiply the attention that rows pay to a
group. Within a stage edits act in the order in which they were put together: each sees the logits, or the attention,
that those before it left. What becomes of learned sink logits (gpt-oss), each method says: a temperature divides them
too, a bias leaves them alone, and pattern edits leave the sink its share.

Hooks, probes and policies see the edited attention: `hook_attn_scores` shows the edited logits, masked, and what it
returns enters the softmax; `hook_pattern` and all observables show what edits of both stages leave (`hook_lse` that of
the edited logits). Queries, keys and values are the model's own. Rows and heads that are not edited keep every bit, but
for rounding in layers that a policy has compressed. No array of queries x keys is made unless somebody hooks scores or
pattern, or asks for gradients through a compressed cache, or the model's own attention makes one: logit edits reach the
kernels through queries and a bias by key, and where they cannot (logits that are set, and a softcap with settings that
differ by row) scores are made a block of rows at a time.

A *cache policy* decides what the cache of a full-attention layer keeps: which tokens, then which channels; one of each
goes together. Policies act after the prompt was read in full, so the first generated token is the model's own, edited
if an edit is in force: edits come first, and a policy observes the attention that the edited model pays. What is
dropped is freed: `lens.last_cache.nbytes()` sums the tensors held, `lens.last_cache.report()` gives them by layer and
part.

A budget counts a text's own tokens, so a text keeps in a padded batch what it keeps alone; the cache is as wide as
its longest row, and places that a shorter text does not use are hidden. A share is one of the first prompt, and never
less than what a method always keeps. A whole number is a bound. Methods that act at every step (`H2O`, `TOVA`) grow
up to it and hold it from then on. Those that act once hold it after the prompt and after every other turn, that is
whenever several tokens come at once, when the turn's queries say what goes; single tokens that are generated in
between come on top. `PyramidKV` holds it in the mean over the layers, but for its whole-number steps, and `Recall`
and `AttentionMatching` fit nothing in later turns. A text that is read back by `lens.score`, in whatever pieces, is no
other turn. `D2O` takes shares only. A text that fits is read whole, and a warning on leaving the block says that
nothing was dropped; a window longer than the text is all of it. `crop` goes back to where a policy last acted, and
refuses to go further: what was dropped, or added to an account of attention, does not come back.

Bytes of a layer with Hs stored heads, C tokens kept after eviction, G generated since, d channels, T of them kept, R
recent tokens and s sinks stored densely, at e bytes a number: keys e Hs ((C - R - s) T + (R + s + G) d), values
e Hs (C + G) d, channel indices 2 Hs T (int16), with `fill="mean"` also e Hs (d - T). Where tokens were evicted, 4 Hs
(C + G) for their positions (int32), and for methods that keep account of attention 4 Hs (C + G) for it (fp32);
`Recall` adds 4 Hs bytes a summary token, `AttentionMatching` 4 Hs a token that was fitted.

`interp.save_cache(lens, path)` writes the cache of the last call to a file, and `interp.load_cache(lens, path)` reads
it, also in another process: what policies left goes on as it would have.

In multi-head latent attention (DeepSeek V2 and V3, Kimi Linear, MiniCPM3, GLM-4.7 Flash, ...) a layer stores one head
for all: its key is the latent with the rotated key beside it, and its value is the latent, a view of the key's first
channels, which takes no bytes of its own. Policies score, drop and merge tokens of that head by the pattern of all
query heads, which is the model's own; a key's or value's norm, or two keys' similarity, is that of what is stored, and
so are `hook_cached_k` and `hook_cached_v` of a compressed layer. `ThinK` can prune rotated channels only, since
latents are values too: at ratio 0.5 that frees 32 of DeepSeek-V3's 576. `Recall`'s summaries have values of their own,
which take the bytes of as many latents. What would need values apart from keys, or a head for each query head, is
refused. Where an index chooses which tokens a query attends to (DeepSeek V3.2, GLM-5, ...) it goes on choosing among
all: its keys are never dropped, nor their bytes freed, a query attends to what a policy has left of its choice and,
where that is nothing, to its own token; `Recall`, whose summaries no index could choose, is refused.

Settings on the command line: `--with think:ratio=0.5,sinks=4 --with knock_out:keys=[0,2],layers=3`; in a file:
`interp.interventions.save(policy, "p.toml")`. `lens.score(prompt, continuation)` gives the loss of every token of a
continuation under whatever is in force. This page is written by `python -m docs.write_interventions`.
"""


def section(intervention: type[Intervention]) -> str:
    module = sys.modules[intervention.__module__]
    lines = [f"\n## `{intervention.name}`: `interp.{intervention.__name__}`\n", markdown(inspect.getdoc(module) or "")]
    lines += ["\n" + markdown(inspect.getdoc(intervention) or "", leave_out=("Args",)), ""]
    lines += ["| setting | default | what |", "| --- | --- | --- |"]
    told = settings(intervention)
    for field in dataclasses.fields(intervention):  # type: ignore[arg-type]  # all are dataclasses
        default = "" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        lines.append(f"| `{field.name}` | {default} | {cell(told.get(field.name, ''))} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    return HEAD + "".join(section(intervention) for intervention in available().values())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.name}")
