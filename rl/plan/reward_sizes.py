"""How much memory the reward models of a recipe take on a GPU, as far as it can be told without loading them."""

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rewards.contract.base import Reward
from rewards.contract.function import FunctionReward
from rewards.contract.spec import RewardSpec
from rewards.geneval.reward import GenEval
from rewards.models.model_reward import ModelReward
from rewards.models.open_clip_model import OpenClip
from rewards.rank import Rank
from rl.config.evaluation_sets import sets_of
from rl.config.sections import Recipe
from uniar.errors import UserError

RELEASED_DETECTORS = {"facebook/mask2former-swin-small-coco-instance": 68_741_083}
"""parameters of Mask2Formers whose config files need not be here"""


@dataclass(frozen=True)
class RewardSizes:
    """Bytes of the reward models of a recipe that run on the GPU."""

    always: int
    """there all the time"""
    scoring: int
    """there only while something is decoded and scored"""
    host: int
    """of the latter, what the machine's memory holds"""
    unknown: tuple[str, ...]
    """names of rewards whose size is not known: those of a plug-in, and of models that only weight files describe"""

    @classmethod
    def of(cls, recipe: Recipe) -> "RewardSizes":
        held_out = {repr(one.eval_rewards): one.eval_rewards for one in sets_of(recipe).values()}
        lists = [_sized(entries, recipe) for entries in (recipe.rewards, *held_out.values())]
        every = [found for entries in lists for found in entries]
        # Training and evaluation take turns, each with its own models.
        scoring = [sum(size or 0 for spec, size in entries if spec.offload) for entries in lists]
        return cls(
            always=sum(size or 0 for spec, size in every if not spec.offload),
            scoring=max(scoring),
            host=sum(scoring),
            unknown=tuple(dict.fromkeys(spec.name for spec, size in every if size is None)),
        )


def _sized(entries: Sequence[Any], recipe: Recipe) -> list[tuple[RewardSpec, int | None]]:
    """Each entry's spec and its bytes on the GPU, None where they are not known."""
    found = []
    for entry in entries:
        spec = RewardSpec.from_mapping(entry, Path(recipe.source).parent)
        if _on_cpu(spec.params):
            continue
        try:
            size = _bytes(spec.build())
        except UserError:
            size = None  # a plug-in that is not here, say: training will tell
        found.append((spec, size))
    return found


def _on_cpu(params: Mapping[str, Any]) -> bool:
    within = [value for value in params.values() if isinstance(value, Mapping) and "use" in value]
    return params.get("device") == "cpu" or any(map(_on_cpu, within))


def _bytes(reward: Reward) -> int | None:
    if isinstance(reward, Rank):
        return _bytes(reward.reward)
    clip = next((value for value in vars(reward).values() if isinstance(value, OpenClip)), None)
    if clip is not None:
        counts = [_open_clip_parameters(clip.name)]
        if isinstance(reward, GenEval):
            counts.append(_detector_parameters(reward.detector))
        return None if None in counts else sum(counts) * getattr(reward, "dtype", torch.float32).itemsize
    ours = type(reward).__module__.startswith("rewards.")
    return 0 if ours and not isinstance(reward, ModelReward | FunctionReward) else None


@functools.cache
def _detector_parameters(name: str) -> int | None:
    """Of a Mask2Former, a folder or a hub id, by its config file."""
    from transformers import AutoConfig, Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    if name in RELEASED_DETECTORS:
        return RELEASED_DETECTORS[name]
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError):
        return None  # not here, or none: training will tell
    if not isinstance(config, Mask2FormerConfig):
        return None
    with torch.device("meta"):
        return Mask2FormerForUniversalSegmentation(config).num_parameters()


@functools.cache
def _open_clip_parameters(name: str) -> int | None:
    import open_clip

    if name not in open_clip.list_models():
        return None
    logging.disable(logging.WARNING)  # it would warn that the model has no weights
    try:
        with torch.device("meta"):
            model = open_clip.create_model(name, load_weights=False, pretrained_text=False, device="meta")
    finally:
        logging.disable(logging.NOTSET)
    return sum(parameter.numel() for parameter in model.parameters())
