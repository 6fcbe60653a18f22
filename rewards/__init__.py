"""Rewards: prompts and images in, one score per sample and reward out. docs/rewards.md has the contract.

The names below are loaded at their first use, so that `import rewards` costs nothing.
"""

from typing import TYPE_CHECKING

# `uniar` itself makes torchvision, which open_clip needs, importable beside a CPU-only torch.
from uniar.import_hooks import loaded_at_first_use

if TYPE_CHECKING:
    from rewards.contract.base import Reward, RewardBatch, RewardError
    from rewards.contract.registry import register_reward
    from rewards.contract.spec import RewardSpec
    from rewards.contract.table import RewardTable
    from rewards.suite import RewardSuite

_MODULES = {
    "Reward": "rewards.contract.base",
    "RewardBatch": "rewards.contract.base",
    "RewardError": "rewards.contract.base",
    "RewardSpec": "rewards.contract.spec",
    "RewardSuite": "rewards.suite",
    "RewardTable": "rewards.contract.table",
    "register_reward": "rewards.contract.registry",
}

__all__ = ["Reward", "RewardBatch", "RewardError", "RewardSpec", "RewardSuite", "RewardTable", "register_reward"]

__getattr__ = loaded_at_first_use(__name__, _MODULES)
