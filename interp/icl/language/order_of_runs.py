"""How much the order of demonstrations matters in a prompt, and how much in fine-tuning on them.

The comparison of Shen, Mishra and Khashabi 2023: gradient descent on all demonstrations at once would not care about
their order, so a model that learns in context by it should not either. Their SGD and Adam runs update all weights; here
fine-tuning is that of `fine_tuned`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch

from interp.icl.language.fine_tuning import Recipe, fine_tuned
from interp.icl.language.label_tasks import LabelPrompts
from interp.icl.language.order import draw_orders, order_sensitivity
from interp.icl.language.readings import next_token_logits

if TYPE_CHECKING:
    import xarray as xr

    from interp.lens.protocol import InterventionLens

Tensor = torch.Tensor


def order_sensitivity_of_runs(
    lens: InterventionLens,
    prompts: LabelPrompts,
    learning_rates: Mapping[Recipe, float],
    permutations: int = 5,
    seed: int = 0,
) -> xr.Dataset:
    """`order_sensitivity` of next-token distributions along `run`: "icl" and each recipe of `learning_rates`.

    All runs see the same queries and the same orders of the demonstrations.
    """
    import xarray as xr

    orders = [tuple(order) for order in draw_orders(len(prompts.demos), permutations, seed)]

    def in_context(order: tuple[int, ...]) -> Tensor:
        return next_token_logits(lens, prompts.in_order(order), prompts.queries, demos=True).softmax(-1)

    def trained(order: tuple[int, ...], recipe: Recipe) -> Tensor:
        with fine_tuned(lens, prompts.in_order(order), learning_rates[recipe], recipe):
            return next_token_logits(lens, prompts, prompts.queries, demos=False).softmax(-1)

    seen: dict[str, dict[tuple[int, ...], Tensor]] = {"icl": {order: in_context(order) for order in orders}}
    for recipe in learning_rates:
        seen[recipe] = {order: trained(order, recipe) for order in orders}
    demos, queries = range(len(prompts.demos)), range(len(prompts.queries))
    results = [
        order_sensitivity(partial(_looked_up, table), demos, queries, permutations, seed) for table in seen.values()
    ]
    return xr.concat(results, "run").assign_coords(run=list(seen))


def _looked_up(table: dict[tuple[int, ...], Tensor], order: list[int], query: int) -> Tensor:
    return table[tuple(order)][query]
