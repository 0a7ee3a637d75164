"""GroupKnockOut: which keys lose what, where sinks are planted in an image and in the text before it."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

import interp
from interp import GroupKnockOut, InterpError, interventions
from tests.interventions.live_cache import close
from tests.interventions.planted_sinks import FIRM, Batch, planted

EXAMPLES = [GroupKnockOut(channels=7, tau_rel=0.6, strength=0.8)]


@pytest.mark.parametrize("group", ["visual_sinks", "visual_non_sinks", "text_sinks"])
@pytest.mark.parametrize("renormalise", [True, False])
def test_one_group_loses_its_share_in_text_after_the_image(
    group: Literal["visual_sinks", "visual_non_sinks", "text_sinks"], renormalise: bool
) -> None:
    batch, name = Batch("llava", ["w1 w2 <image> w3 w4"]), "blocks.2.attn.hook_pattern"
    given = {"attention_mask": batch.mask, **batch.rest, "names_filter": name}
    edit = GroupKnockOut(**FIRM, group=group, strength=0.75, renormalise=renormalise, layers=2)
    with torch.no_grad(), planted(batch.lens, batch.planted):
        before = batch.lens.run_with_cache(batch.ids, **given)[1][name][0]
        with batch.lens.apply(edit):
            found = batch.lens.run_with_cache(batch.ids, **given)[1][name][0]
    first, *visual = batch.planted[0]
    others = [j for j in batch.images[0].nonzero().ravel().tolist() if j not in visual]
    losing = {"visual_sinks": visual, "visual_non_sinks": others, "text_sinks": [first]}[group]
    end = int(batch.images[0].nonzero().max()) + 1
    wanted = before.clone()
    wanted[:, end:, losing] *= 0.25
    if renormalise:
        wanted /= wanted.sum(-1, keepdim=True)
    assert torch.equal(found[:, :end], before[:, :end])
    close(found, wanted, 1e-6)


def test_it_is_made_from_text_and_refuses_what_is_no_share() -> None:
    edit = interventions.parse("group_knock_out:channels=[1,2],group=text_sinks,strength=0.5")
    assert edit == interp.GroupKnockOut(channels=(1, 2), group="text_sinks", strength=0.5)
    with pytest.raises(InterpError, match="strength should be 0 to 1, found"):
        GroupKnockOut(channels=3, strength=1.5)
