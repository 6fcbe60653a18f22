"""The trainer: TRL's GRPOTrainer with our rollout and our loss, and what watches it."""
