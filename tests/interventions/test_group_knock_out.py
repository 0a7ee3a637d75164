"""GroupKnockOut: what the matrix of all edits cannot know of it."""

from __future__ import annotations

from interp import GroupKnockOut

EXAMPLES = [GroupKnockOut(channels=7, tau_rel=0.6, strength=0.8)]
