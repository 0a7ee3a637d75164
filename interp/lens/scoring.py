"""`lens.score`: how well a model predicts a continuation, with interventions in force."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float

from interp.errors import InterpError

Tensor = torch.Tensor


class ScoreMixin:
    """The part of a Lens that scores continuations."""

    @torch.no_grad()
    def score(
        self: Any, prompt: str | Tensor, continuation: str | Tensor, *, chunk: int = 256
    ) -> Float[Tensor, "batch token"]:
        """Negative log-likelihood (nats) of every token of `continuation` after `prompt`: `[batch, token]`, fp32.

        The prompt is read first, cache policies in force act, and then the true continuation is fed `chunk` tokens at a
        time: policies that act at every step want `chunk=1`, as in generation. The first token is predicted from the
        prompt alone, so no cache policy changes it (an attention edit does). A policy that waits for the first token
        after the prompt (D2O by default) gets that one by itself and then acts, so the second token's prediction is the
        full cache's too. Text is tokenised with special tokens in the prompt only.
        """
        if chunk < 1:
            raise InterpError(f"score: chunk should be at least 1, found {chunk}.")
        tokens, attention_mask = self.tokens_and_mask(prompt)
        rest = self._continuation(continuation, tokens)
        if rest.shape[1] == 0:
            raise InterpError("score: the continuation is empty; there is nothing to score.")
        self.check_length(tokens.shape[1] + rest.shape[1])
        cache: dict[str, Any] = {"use_cache": True, "attention_mask": attention_mask}
        logits = self(tokens, **cache, **self.last_logits_only)[:, -1:]
        cache["past_key_values"] = self.last_cache
        losses = [nll_of(logits, rest[:, :1])]
        fed = rest[:, :-1]
        first = 1 if self.last_cache.waits else chunk
        for part in filter(torch.numel, (fed[:, :first], *fed[:, first:].split(chunk, 1))):
            start = sum(loss.shape[1] for loss in losses)
            if cache["attention_mask"] is not None:
                ones = torch.ones_like(part, dtype=cache["attention_mask"].dtype)
                cache["attention_mask"] = torch.cat([cache["attention_mask"], ones], 1)
            logits = self(part, **cache)
            losses.append(nll_of(logits, rest[:, start : start + part.shape[1]]))
        return torch.cat(losses, 1)

    def _continuation(self: Any, continuation: str | Tensor, tokens: Tensor) -> Tensor:
        if isinstance(continuation, Tensor):
            rest = torch.atleast_2d(continuation).to(tokens.device)
        else:
            ids = self._need_tokenizer()(continuation, add_special_tokens=False).input_ids
            rest = torch.tensor([ids], dtype=tokens.dtype, device=tokens.device)
        if rest.shape[0] != tokens.shape[0]:
            raise InterpError(f"score: {tokens.shape[0]} prompts and {rest.shape[0]} continuations do not pair up.")
        return rest


def nll_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of `targets [batch, token]` under `logits [batch, token, d_vocab]`."""
    wide = logits.float().transpose(1, 2)
    return torch.nn.functional.cross_entropy(wide, targets, reduction="none")
