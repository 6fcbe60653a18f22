"""Samples that draw one picture each, as rows."""

from collections.abc import Sequence
from typing import Any

from rl.policy.play import play
from rl.policy.samples import DrawSettings, Sample
from rl.policy.turns import Pictures, joined


def drawn(model: Any, processor: Any, samples: Sequence[Sample], settings: DrawSettings, step: int = 0) -> Pictures:
    """What they draw."""
    return joined([played.turns[0] for played in play(model, processor, samples, settings, step=step)])
