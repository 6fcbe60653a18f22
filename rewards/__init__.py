"""Rewards: prompts and images in, one score a sample and reward out. docs/rewards.md has the contract."""

import uniar  # noqa: F401  first: makes torchvision, which open_clip needs, importable beside a CPU-only torch
from rewards.contract.base import Reward, RewardBatch, RewardError
from rewards.contract.registry import register_reward
from rewards.contract.spec import RewardSpec
from rewards.contract.table import RewardTable
from rewards.suite import RewardSuite

__all__ = ["Reward", "RewardBatch", "RewardError", "RewardSpec", "RewardSuite", "RewardTable", "register_reward"]
