"""RL trainers for UniAR: prompts, rollout, decode, reward, advantage, loss, update, evaluation, export."""

import uniar  # noqa: F401  (makes torchvision importable before transformers and TRL are)
