"""What `uniar-rl evaluate --model` may name: a complete checkpoint, a run's checkpoint-N, or an adapter alone."""

from dataclasses import dataclass
from pathlib import Path

from rl.checkpoint.adapters import read_config
from rl.checkpoint.folders import checkpoints, fault
from rl.checkpoint.layout import ADAPTER_CONFIG, CONFIG, MANIFEST, STATE
from rl.checkpoint.resume import put_weights
from rl.checkpoint.weights import trained_weights
from rl.config.model import ModelSection
from rl.config.recipe import load_recipe
from rl.policy.loading import checkpoint_of, load_policy
from uniar.checkpoint import resolve_checkpoint
from uniar.errors import UserError
from uniar.modeling_uniar import UniARForConditionalGeneration


@dataclass(frozen=True)
class NamedModel:
    """A model to evaluate."""

    source: Path
    """a complete checkpoint: configs, tokenizer, decoder, and the weights that training leaves alone"""
    trained: Path | None = None
    """a checkpoint or an adapter, whose weights are used in place of the source's"""
    is_checkpoint: bool = False
    """whether that is a checkpoint of training, which may hold averages; an adapter alone has none"""

    def load(self, section: ModelSection, *, average: bool = False) -> UniARForConditionalGeneration:
        """The model in the section's type and attention. average: with the averages of what was trained. Raises
        UserError for weights that are missing, of another model, or not finite."""
        model = load_policy(section, self.source)
        if self.trained is not None:
            model.set_trainable(text=True)  # more than some runs train: the rest is the source's own
            weights = trained_weights(self.trained, self.source, average=average)
            trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
            put_weights(trained, weights, self.trained)
        for name, parameter in model.named_parameters():
            if not parameter.isfinite().all():  # it would draw all the same, and what it drew would have scores
                raise UserError(f"{self.trained or self.source}: tensor {name} holds NaN or infinities.")
        return model


def named_model(name: str) -> NamedModel:
    """A folder or hub id. Raises UserError where it is none of what can be evaluated."""
    folder = resolve_checkpoint(name)
    if saved := checkpoints(folder):
        raise UserError(f"{folder} is a run's folder; name one of its checkpoints, such as {saved[-1]}, or its final/.")
    is_checkpoint = any((folder / file).is_file() for file in (STATE, MANIFEST))
    if not is_checkpoint and not (folder / ADAPTER_CONFIG).is_file():
        return NamedModel(folder)
    if (folder / MANIFEST).is_file() and (wrong := fault(folder)) is not None:
        raise UserError(f"{folder} is damaged: {wrong}.")
    return NamedModel(source_of(folder) if is_checkpoint else _base_of(folder), folder, is_checkpoint)


def source_of(checkpoint: Path) -> Path:
    """The complete checkpoint that a run's checkpoint was trained from, as the run's recipe says, in the checkpoint or
    beside it. Raises UserError where neither is there."""
    for config in (checkpoint.parent / CONFIG, checkpoint / CONFIG):
        if config.is_file():
            return checkpoint_of(load_recipe(config).model)
    raise UserError(f"{checkpoint} has no {CONFIG}, in it or beside it, to say which model it was trained from.")


def _base_of(adapter: Path) -> Path:
    base = read_config(adapter).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"{adapter / ADAPTER_CONFIG} does not name a base model (base_model_name_or_path).")
    return resolve_checkpoint(base)
