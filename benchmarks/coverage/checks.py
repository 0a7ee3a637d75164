"""The checks of one model: what a Lens says of it beside what is true of it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch

import interp
from benchmarks.coverage.reference import NEW, PROMPT, Bare
from interp.errors import InterpError

Tensor = torch.Tensor
CLOSE = 1e-4
POINTS = ("hook_resid_pre", "hook_attn_out", "hook_mixer_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post",
          "hook_cross_attn_out", "hook_resid_mid2")  # fmt: skip
ALL_STAYS = 2 * (PROMPT + NEW)
POLICIES = {
    "think": (interp.ThinK(ratio=0.5, recent=4, window=4), interp.ThinK(ratio=0.0, recent=4, window=4)),
    "snapkv": (interp.SnapKV(budget=0.4, window=4), interp.SnapKV(budget=ALL_STAYS, window=4)),
    "h2o": (interp.H2O(budget=0.4), interp.H2O(budget=ALL_STAYS)),
    "d2o": (interp.D2O(budget=0.4, variant="paper"), None),
}
"""name -> (with settings that drop something, with settings that keep all; D2O has none)."""


NO_WEIGHTS = "neither the model nor its file's attention function reports weights of what it computes"


class Unknown(Exception):
    """There is nothing to compare with, for the reason given."""


class Idle(Exception):
    """A policy had no effect."""


class Checks:
    """The checks of one model, each of which returns how far off the Lens is, or a text, or raises."""

    def __init__(self, lens: interp.Lens, bare: Bare) -> None:
        self.lens, self.bare, self.texts = lens, bare, bare.texts
        self.padded, self.beside = bare.on_padding(), bare.beside(bare.texts.short)
        self.found: dict[str, Tensor] | None = None

    def listed(self) -> dict[str, Callable[[], Any]]:
        made: dict[str, Callable[[], Any]] = {
            "logits": lambda: _same(self.lens(self.texts.short, **self.beside), self.bare.logits),
            "logits_hooked": lambda: _same(
                self.lens.run_with_cache(self.texts.short, **self.beside)[0], self.bare.logits
            ),
            "logits_padded": lambda: self.on_padding(self.lens),
            "logits_padded_hooked": lambda: self.on_padding(lambda *a, **k: self.lens.run_with_cache(*a, **k)[0]),
            "pattern": self.pattern,
            "pattern_padded": self.pattern_padded,
            "values": self.values,
            "column_mass": self.column_mass,
            "column_mass_padded": self.column_mass_padded,
            "residual": self.residual,
            "readout": self.readout,
            "generate": lambda: self.as_bare(self.generated),
            "generate_hooked": lambda: self.as_bare(lambda: self.hooked(self.generated)),
            "generate_padded": self.generated_padded,
        }
        for name, (acting, idle) in POLICIES.items():
            made[name] = lambda acting=acting: self.under(acting)
            if idle is not None:
                made[f"{name}_keeps_all"] = lambda idle=idle: self.as_bare(lambda: self.without_warnings(idle))
        made["probes"] = lambda: len(interp.probe(self.lens, self.texts.prompt[0])) == 0
        return made

    def names(self, point: str) -> list[str]:
        """Of that point in all layers, in order of depth."""
        found = [name for name in self.lens.hook_dict if name.endswith((f".{point}", f".cross_{point}"))]
        return sorted(found, key=lambda name: (_stack(name), int(re.sub(r"\D", "", name.partition("attn")[0]))))

    def kept(self, *points: str, **given: Any) -> dict[str, Tensor]:
        names = {name for point in points for name in self.names(point)}
        if not names:
            raise Unknown("there are no such points")
        given = dict(given)
        tokens = given.pop("tokens", self.texts.short)
        given |= self.bare.beside(tokens)
        _, cache = self.lens.run_with_cache(tokens, names_filter=lambda name: name in names, **given)
        return {name: cache[name] for name in names}

    def shown(self) -> list[Tensor]:
        if self.found is None:
            looked: dict[str, Any] = {"names_filter": lambda n: n.endswith("hook_pattern")} | self.beside
            logits, _ = self.lens.run_with_cache(self.texts.short, **looked)
            if (off := _off([(logits, self.bare.logits)]) / _size([self.bare.logits])) > 1e-3:
                raise ValueError(f"logits are off by {off:.2g} while patterns are looked at")
            self.found = self.kept("attn.hook_pattern")
        return [self.found[name] for name in self.names("attn.hook_pattern")]

    def on_padding(self, run: Callable[..., Tensor]) -> float:
        if self.padded is None:
            raise Unknown("the model takes no mask")
        real, beside = self.bare.real(self.texts.mask), self.bare.beside(self.texts.padded)
        return _same(run(self.texts.padded, attention_mask=self.texts.mask, **beside)[real], self.padded[real])

    def pattern(self) -> float:
        shown = self.shown()
        if (truth := self.bare.patterns(len(shown), self.texts.short)) is None:
            raise Unknown(NO_WEIGHTS)
        weights = [w[..., : p.shape[-1]] for w, p in zip(truth, shown, strict=True)]
        off = _off(zip(shown, weights, strict=True))
        if off > CLOSE and self.lens.cfg.learned_sinks:  # some apply sinks to the output, and report weights without
            off = _off(zip((p / p.sum(-1, keepdim=True) for p in shown), weights, strict=True))
        return off

    def pattern_padded(self) -> float:
        if self.padded is None:
            raise Unknown("the model takes no mask")
        given = {"tokens": self.texts.padded, "attention_mask": self.texts.mask}
        shown = list(_ordered(self.kept("attn.hook_pattern", **given), self.names("attn.hook_pattern")))
        mask = self.texts.mask
        positions = {} if self.bare.two_texts else {"position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}
        truth = self.bare.patterns(len(shown), self.texts.padded, attention_mask=mask, **positions) or (
            self.bare.patterns(len(shown), self.texts.padded, attention_mask=mask)
        )
        if truth is None:
            raise Unknown(NO_WEIGHTS)
        weights = [w[..., : p.shape[-1]] for w, p in zip(truth, shown, strict=True)]
        if self.lens.cfg.learned_sinks:
            shown, weights = ([p / p.sum(-1, keepdim=True) for p in some] for some in (shown, weights))
        pairs = zip(self.names("attn.hook_pattern"), shown, weights, strict=True)
        return _off((p.where(rows := self.rows(name), 0.0), w.where(rows, 0.0)) for name, p, w in pairs)

    def rows(self, name: str) -> Tensor:
        """Which rows of a pattern over the padded texts are no padding; a decoder's text has none."""
        writes = self.bare.two_texts and _stack(name) > 0
        real = self.bare.real(self.texts.mask) if writes else self.texts.mask.bool()
        return real[:, None, :, None]

    def values(self) -> float:
        """What the heads put out is the pattern times the values."""
        if not self.names("attn.hook_cached_v"):
            raise Unknown("there is no such point")
        cache, pairs = self.kept("attn.hook_cached_v", "attn.hook_z"), []
        for pattern, v, z in zip(
            self.shown(), self.names("attn.hook_cached_v"), self.names("attn.hook_z"), strict=True
        ):
            value = cache[v].transpose(1, 2).repeat_interleave(pattern.shape[1] // cache[v].shape[2], 1)
            pairs.append(((pattern.float() @ value.float()).transpose(1, 2), cache[z].float()))
        return _off(pairs) / _size(z for _, z in pairs)

    def column_mass(self) -> float:
        mass = _ordered(self.kept("attn.hook_column_mass"), self.names("attn.hook_column_mass"))
        return _off((m, p.float().sum(2)) for m, p in zip(mass, self.shown(), strict=True))

    def column_mass_padded(self) -> float:
        """Of one run with both, since what sparse attention selects among padding depends on who computes it. A row
        that sees no key, as it may leave one, attends to all alike, and counts nowhere."""
        if self.padded is None:
            raise Unknown("the model takes no mask")
        points = ("attn.hook_pattern", "attn.hook_column_mass")
        cache = self.kept(*points, tokens=self.texts.padded, attention_mask=self.texts.mask)
        shown, mass = (_ordered(cache, self.names(point)) for point in points)
        pairs = []
        for name, m, p in zip(self.names(points[1]), mass, shown, strict=True):
            rows = self.rows(name)
            own, read = rows[:, :, :, 0], self.texts.mask[:, None].bool()
            keys = next(k for k in (own, read, torch.cat([own, read], -1)) if k.shape[-1] == p.shape[-1])
            sees = p.amax(-1, keepdim=True) - p.amin(-1, keepdim=True) > 1e-6
            pairs.append((m.where(keys, 0.0), p.where(rows & sees, 0.0).sum(2).where(keys, 0.0)))
        return _off(pairs)

    def residual(self) -> float:
        """Every block hands on what it was given and what its writers add, and the next one is given that."""
        cache, off = self.kept(*POINTS), []
        for stack in self.lens.anatomy.stacks:
            before = None
            for layer, block in enumerate(stack.blocks):
                at = {point: cache.get(f"{stack.prefix}blocks.{layer}.{point}") for point in POINTS}
                pre, post = at["hook_resid_pre"], at["hook_resid_post"]
                if pre is None or post is None:
                    continue
                # of post-norm blocks nothing is added, but the stream that leaves a block enters the next
                if block.middle is not None and before is not None:
                    off.append(_off([(before, pre)]) / _size([post]))
                off += [_off([pair]) / _size([post]) for pair in _sums(at)]
                if at["hook_resid_mid"] is None and self.adds_up_at_once(f"{stack.prefix}blocks.{layer}", at):
                    whole = pre + _mixed(at) + (0 if at["hook_mlp_out"] is None else at["hook_mlp_out"])
                    off.append(_off([(whole, post)]) / _size([post]))
                before = post
        if not off:
            raise Unknown("there is nothing to add up")
        return max(off)

    def adds_up_at_once(self, block: str, at: dict[str, Any]) -> bool:
        """Whether a block has nothing between mixer and MLP, and both are known, or one of them is not there."""
        known = at["hook_mlp_out"] is not None or f"{block}.hook_mlp_out" in self.lens.elsewhere
        return _mixed(at) is not None and known

    def readout(self) -> float:
        if not (ends := self.names("hook_resid_post")):
            raise Unknown("there is no such point")
        last = ends[-1]  # of the last block that text passes
        _, cache = self.lens.run_with_cache(self.texts.short, names_filter=lambda name: name == last, **self.beside)
        logits = self.lens.unembed(self.lens.normalized(cache[last]))
        finite = self.bare.logits > torch.finfo(logits.dtype).min  # columns that are ruled out for good
        return _off([(logits[finite], self.bare.logits[finite])]) / _size([self.bare.logits[finite]])

    def text(self) -> Tensor:
        """The bare model's own continuation of the prompt."""
        try:
            return self.bare.continued(self.texts.prompt)
        except Exception as error:
            raise Unknown(f"the bare model does not generate ({said(error)[:80]})") from error

    def as_bare(self, run: Callable[[], Tensor]) -> float:
        truth = self.text()  # first: a model that does not generate is no fault of a Lens
        made = run()
        if (off := _same(made, truth)) and torch.equal(made, self.bare.continued(self.texts.prompt, cached=True)):
            raise Unknown("the bare model itself goes on differently when it is handed a cache")
        return off

    def generated(self, **given: Any) -> Tensor:
        tokens = given.pop("tokens", self.texts.prompt)
        made: Tensor = self.lens.generate(tokens, max_new_tokens=NEW, **given)
        return made

    def hooked(self, run: Callable[..., Tensor], **given: Any) -> Tensor:
        """With hooks that read: on all points that the model computes anyway, and the patterns of one layer."""
        read = [name for point in ("attn.hook_z", "attn.hook_v", "hook_resid_post") for name in self.names(point)]
        with self.lens.hooks(fwd_hooks=[(name, lambda value, hook: None) for name in read]):
            return run(**given)

    def generated_padded(self) -> float:
        given = {"tokens": self.texts.padded, "attention_mask": self.texts.mask}
        try:
            truth = self.bare.continued(self.texts.padded, self.texts.mask)
        except Exception as error:
            raise Unknown(f"the bare model does not generate from padding ({said(error)[:80]})") from error
        made = self.generated(**given)
        if not torch.equal(made, truth) and torch.equal(made, self.bare.continued(*given.values(), cached=True)):
            raise Unknown("the bare model itself goes on differently when it is handed a cache")
        return max(_same(made, truth), _same(self.hooked(self.generated, **given), truth))

    def under(self, policy: Any) -> float:
        """The prompt is read in full before a policy acts, so the first token is the bare model's."""
        truth = self.text()[:, : PROMPT + 1]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with self.lens.apply(policy):
                made = self.generated()
        idle = [str(w.message) for w in caught if "dropped nothing" in str(w.message) or "no call" in str(w.message)]
        if idle:
            raise Idle(idle[0])
        return _same(made[:, : PROMPT + 1], truth)

    def without_warnings(self, policy: Any) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with self.lens.apply(policy):
                return self.generated()


def _mixed(at: dict[str, Any]) -> Any:
    return at["hook_attn_out"] if at["hook_mixer_out"] is None else at["hook_mixer_out"]


def _sums(at: dict[str, Any]) -> Iterable[tuple[Tensor, Tensor]]:
    """Each sum along a block's stream that can be made of what its points saw, beside what it should come to."""
    mid, mid2 = at["hook_resid_mid"], at["hook_resid_mid2"]
    steps = [(at["hook_resid_pre"], _mixed(at), mid), (mid, at["hook_cross_attn_out"], mid2)]
    steps.append((mid if mid2 is None else mid2, at["hook_mlp_out"], at["hook_resid_post"]))
    return [
        (start + written, end) for start, written, end in steps if not any(x is None for x in (start, written, end))
    ]


def _stack(name: str) -> int:
    """Encoder, decoder, and the attention between them, in the order in which models report weights."""
    return 0 if name.startswith("encoder.") else 2 if ".cross_attn." in name else 1


def said(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, (InterpError, Unknown, Idle)) else f"{type(error).__name__}: {text}"


def _same(got: Tensor, expected: Tensor) -> float:
    """0 where all bits are the same, else how far they are apart, and infinity where that is not to be said."""
    if got.shape == expected.shape and torch.equal(got, expected):
        return 0.0
    return max(_off([(got, expected)]), 2 * CLOSE) if got.shape == expected.shape else float("inf")


def _off(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Largest absolute difference; infinite where shapes differ."""
    return max(
        (float((a.float() - b.float()).abs().max()) if a.shape == b.shape else float("inf") for a, b in pairs),
        default=0.0,
    )


def _size(tensors: Iterable[Tensor]) -> float:
    return max(1e-6, *(float(tensor.float().abs().max()) for tensor in tensors))


def _ordered(cache: dict[str, Tensor], names: list[str]) -> Iterable[Tensor]:
    return (cache[name] for name in names)
