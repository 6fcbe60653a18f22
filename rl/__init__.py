"""RL trainers for UniAR: prompts, rollout, decode, reward, advantage, loss, update, evaluation, export."""

import os

import torch

import uniar  # noqa: F401  (makes torchvision importable before transformers and TRL are)

# DeepSpeed looks for its accelerator when it is first imported, which transformers does; without a GPU it must be told.
if not torch.accelerator.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
