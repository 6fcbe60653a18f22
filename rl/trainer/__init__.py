"""The trainer: TRL's GRPOTrainer with our rollout and our loss, and what watches it.

Read step.py first. The rest is what surrounds it: TRL's seams, callbacks, the watch, and the checks of the `trainer`
section, which need the engine.
"""
