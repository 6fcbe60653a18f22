"""Losses that are made of other gaps than those that were replayed."""

from rl.trainer.step import Step
from rl.trainer.train_batch import TrainBatch


def spoil_losses(monkeypatch, when, spoil) -> None:
    """From now on, where `when(trainer)`, a loss is made of `spoil` of the gaps that it replays."""
    sound, replay = Step.loss, TrainBatch.replay

    def loss(self, model, batch):
        with monkeypatch.context() as patch:
            if when(self.trainer):
                patch.setattr(TrainBatch, "replay", lambda *given: spoil(replay(*given)))
            return sound(self, model, batch)

    monkeypatch.setattr(Step, "loss", loss)


def not_a_number(gaps):
    return gaps._replace(cond=gaps.cond * float("nan"))
