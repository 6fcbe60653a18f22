"""Losses that are made of other gaps than those that were replayed."""

from rl.policy.turns import Pictures
from rl.trainer.step import Step


def spoil_losses(monkeypatch, when, spoil) -> None:
    """From now on, where `when(trainer)`, a loss is made of `spoil` of the gaps that it replays."""
    sound, replay = Step.loss, Pictures.replay

    def loss(self, model, forwards):
        with monkeypatch.context() as patch:
            if when(self.trainer):
                patch.setattr(Pictures, "replay", lambda *given: spoil(replay(*given)))
            return sound(self, model, forwards)

    monkeypatch.setattr(Step, "loss", loss)


def not_a_number(gaps):
    return gaps._replace(cond=gaps.cond * float("nan"))
