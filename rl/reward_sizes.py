"""How much memory the reward models of a recipe take on a GPU, as far as it can be told without loading them."""

import functools
import logging
from pathlib import Path

import torch

from rewards.base import Reward
from rewards.function import FunctionReward
from rewards.model_reward import ModelReward
from rewards.open_clip_model import OpenClip
from rewards.spec import RewardSpec
from rl.config import Recipe
from uniar.errors import UserError


def reward_models(recipe: Recipe) -> tuple[int, tuple[str, ...]]:
    """Bytes of the reward models that run on the GPU, and the names of rewards whose size is not known here: those of a
    plug-in, and of models that only their weight files describe."""
    total, unknown = 0, []
    for entry in [*recipe.rewards, *recipe.eval_rewards]:
        spec = RewardSpec.from_mapping(entry, Path(recipe.source).parent)
        if spec.params.get("device") == "cpu":
            continue
        try:
            reward = spec.build()
        except UserError:
            unknown.append(spec.name)  # a plug-in that is not here, say: training will tell
            continue
        size = _bytes(reward)
        if size is None:
            unknown.append(spec.name)
        total += size or 0
    return total, tuple(dict.fromkeys(unknown))


def _bytes(reward: Reward) -> int | None:
    clip = next((value for value in vars(reward).values() if isinstance(value, OpenClip)), None)
    if clip is not None:
        parameters = _open_clip_parameters(clip.name)
        return None if parameters is None else parameters * getattr(reward, "dtype", torch.float32).itemsize
    ours = type(reward).__module__.startswith("rewards.")
    return 0 if ours and not isinstance(reward, ModelReward | FunctionReward) else None


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
