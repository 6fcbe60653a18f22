"""What rl/trainer/resumable.py and rl/trainer/trainer.py rely on in TRL's private code; fails when a new pin of TRL
moves any of it."""

import inspect
from importlib.metadata import version

import torch
from transformers import Trainer
from transformers.trainer_callback import CallbackHandler
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler, shuffle_sequence_dict, split_tensor_dict


def test_the_pin():
    assert version("trl") == "1.16.0"


def test_the_seams():
    assert list(inspect.signature(GRPOTrainer._prepare_inputs).parameters) == ["self", "generation_batch"]
    assert list(inspect.signature(GRPOTrainer._generate_and_score_completions).parameters) == ["self", "inputs"]
    assert list(inspect.signature(GRPOTrainer._compute_loss).parameters) == ["self", "model", "inputs"]
    assert list(inspect.signature(GRPOTrainer.log).parameters) == ["self", "logs", "start_time"]
    assert list(inspect.signature(GRPOTrainer._get_train_sampler).parameters) == ["self", "dataset"]


def test_what_surrounds_the_seams():
    prepare = inspect.getsource(GRPOTrainer._prepare_inputs)
    # A rollout is drawn every steps_per_generation * num_iterations micro-batches, shuffled, and split by sample.
    assert "generate_every = self.args.steps_per_generation * self.num_iterations" in prepare
    assert "self._step % generate_every == 0" in prepare
    assert "shuffle_sequence_dict(generation_batch)" in prepare
    assert "split_tensor_dict(generation_batch, self.args.steps_per_generation)" in prepare
    # The micro-batches are kept, and handed out one by one, as often as the rollout serves.
    assert "self._buffered_inputs = [unsplit_pixel_values_by_grid(batch) for batch in generation_batches]" in prepare
    assert "inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]" in prepare
    assert "self._buffered_inputs = None" in inspect.getsource(GRPOTrainer.__init__)
    # The loss is taken as it comes: what we return is already divided by the accumulation steps.
    assert "self._compute_loss(model, inputs)" in inspect.getsource(GRPOTrainer.compute_loss)
    assert 'self.compute_loss_func = "non-None value to disable scaling"' in inspect.getsource(
        inspect.getmodule(GRPOTrainer.__mro__[1])
    )
    assert "self._step += 1" in inspect.getsource(GRPOTrainer.training_step)
    assert "self._metrics[mode]" in inspect.getsource(GRPOTrainer.log)
    init = inspect.getsource(GRPOTrainer.__init__)
    assert "if self.beta == 0.0:" in init  # no reference model of TRL's own
    assert "data_collator=identity" in init


def test_what_resuming_with_weights_alone_goes_around():
    parameters = inspect.signature(Trainer._prepare_for_training).parameters
    assert list(parameters) == ["self", "max_steps", "train_dataloader", "resume_from_checkpoint"]
    assert list(inspect.signature(Trainer._load_from_checkpoint).parameters)[:2] == ["self", "resume_from_checkpoint"]
    prepare = inspect.getsource(Trainer._prepare_for_training)
    assert "deepspeed_load_checkpoint(" in prepare
    assert "self._load_optimizer_and_scheduler(resume_from_checkpoint)" in prepare
    # The step and the place in the data come before, from the checkpoint all the same.
    assert "TrainerState.load_from_json" in inspect.getsource(Trainer._init_training_state)


def test_what_a_run_that_has_made_its_last_update_goes_around():
    loop = inspect.getsource(Trainer._inner_training_loop)
    call = loop.split("self._run_epoch(")[1].split("\n            )")[0]
    assert all("=" in argument for argument in call.strip().splitlines())  # by name
    assert "if self.control.should_training_stop:\n                break" in loop
    assert "control.should_training_stop = False" in inspect.getsource(CallbackHandler.on_train_begin)


def test_batches_hold_lists_and_tensors():
    """Lists of whatever they are: here trajectories."""
    batch = {"bits": torch.arange(4), "pixels": [torch.tensor(i) for i in range(4)], "absent": None}
    shuffled = shuffle_sequence_dict(batch)
    assert [int(pixel) for pixel in shuffled["pixels"]] == shuffled["bits"].tolist()
    halves = split_tensor_dict(batch, 2)
    assert halves[1]["bits"].tolist() == [2, 3]
    assert [int(pixel) for pixel in halves[1]["pixels"]] == [2, 3]
    assert halves[0]["absent"] is None


def test_groups_stand_together_in_the_sampler():
    sampler = RepeatSampler(range(4), mini_repeat_count=3, batch_size=2, repeat_count=1, shuffle=True, seed=1)
    order = list(sampler)
    assert len(order) == 12
    assert all(len(set(order[start : start + 3])) == 1 for start in range(0, 12, 3))


def test_argument_names_we_set():
    fields = GRPOConfig.__dataclass_fields__
    for name in ("num_generations", "num_iterations", "steps_per_generation", "beta", "loss_type", "scale_rewards"):
        assert name in fields
