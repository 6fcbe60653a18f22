"""Whom the KL term of the loss measures from: a run's reference, or in distillation the expert of each prompt.

On-policy distillation (arXiv 2306.13649; from several experts, Flow-OPD, 2605.08063): the student plays, and whoever is
its prompt's expert says of each bit and token how probable it finds it. Of a bit KL(π ‖ expert) is exact.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from accelerate.utils import gather_object

from rl.algorithm.guidance import GuidanceSettings
from rl.algorithm.metrics import Kind
from rl.config.recipe import blamed_on
from rl.config.sections import Recipe
from rl.data.prompts import PromptRecord
from rl.episodes.registry import DEFAULT
from rl.policy.evaluated import NamedModel, named_model
from rl.policy.loading import load_config
from rl.policy.reference import AdapterOff, FrozenCopy, Reference
from rl.policy.trajectory import Trajectory
from rl.policy.turns import Turn
from uniar.checkpoint import load_processor
from uniar.errors import UserError, did_you_mean
from uniar.inspection import inspect_checkpoint

if TYPE_CHECKING:
    from accelerate import Accelerator

    from uniar.configuration_uniar import UniARConfig

_DIVERGENCES = ("kl", "text/kl")
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Expert:
    """A policy that does not learn."""

    reference: Reference
    guidance: GuidanceSettings
    """what makes its policy of its raw gaps"""
    hidden: int
    """size of the states that its tokens are predicted from"""


class Experts:
    """They, by name. A reference is the expert of all prompts, under the name "", which nothing shows."""

    def __init__(self, named: Mapping[str, Expert], by: str = "task") -> None:
        """by: what of a record names its expert, task or tag."""
        self.named, self.by = dict(named), by

    @classmethod
    def only(cls, reference: Reference | None, guidance: GuidanceSettings, config: "UniARConfig") -> "Experts":
        """Of a run with this reference, or without one. config: the policy's."""
        return cls({} if reference is None else {"": Expert(reference, guidance, config.text_config.hidden_size)})

    def __getitem__(self, name: str) -> Expert:
        return self.named[name]

    @property
    def teach(self) -> bool:
        """Whether this is distillation."""
        return bool(self.named) and "" not in self.named

    @property
    def hidden(self) -> dict[str, int]:
        return {name: one.hidden for name, one in self.named.items()}

    def named_in(self, trajectory: Trajectory) -> list[Turn]:
        """A sample's turns with the name of its expert."""
        name = expert_name(self.named, trajectory.sample.record, self.by) if self.teach else ""
        return [replace(turn, expert=name) for turn in trajectory.turns]

    def asked(self, turns: Sequence[Turn], processes: "Accelerator") -> Iterator[tuple[Expert, list[int]]]:
        """Each expert that any process has turns for, one after the other, with the places of this process's.
        Collective."""
        own: dict[str, list[int]] = {}
        for place, turn in enumerate(turns):
            own.setdefault(turn.expert, []).append(place)
        names = set(self.named)
        if len(names) > 1:
            every = gather_object([list(own)]) if processes.num_processes > 1 else [list(own)]
            names = {name for process in every for name in process}
        for name in sorted(names):
            yield self.named[name], own.get(name, [])

    @property
    def metrics(self) -> dict[str, Kind]:
        """The names of what `measured` makes, and how several measurements make one."""
        return {f"distill/{name}/{key}": "mean" for name in self.named if name for key in _DIVERGENCES}


def measured(metrics: Mapping[str, _Value], expert: str) -> dict[str, _Value]:
    """With the divergence from a named expert under its name too."""
    own = {f"distill/{expert}/{key}": metrics[key] for key in _DIVERGENCES if expert and key in metrics}
    return {**metrics, **own}


def expert_name(known: Mapping[str, Any], record: PromptRecord, by: str) -> str:
    """Of the expert of a prompt, among those that are known by name, or else the default."""
    name = record.task if by == "task" else record.tag
    return name if name is not None and name in known else DEFAULT


def named_experts(
    recipe: Recipe, source: Path, processor: Any, records: Sequence[PromptRecord]
) -> dict[str, NamedModel]:
    """Name → model of each expert; none without distillation. Loads no weight.

    source, processor: the student's. Raises UserError for an expert that no prompt has and for a prompt without one,
    for a path that names no model, and for a model with another tokenizer or other bits than the student's.
    """
    section = recipe.distill
    if section is None:
        return {}
    _check_names(recipe, records)
    found = {}
    for name, expert in section.experts.items():
        with blamed_on(recipe, f"distill.experts.{name}.path"):
            found[name] = NamedModel(source) if expert.path is None else named_model(expert.path)
            if found[name].source != source:
                inspect_checkpoint(found[name].source, decoder=False)
                _require_same_tokens(found[name].source, source, processor)
    return found


def _check_names(recipe: Recipe, records: Sequence[PromptRecord]) -> None:
    section = recipe.distill
    assert section is not None
    there = sorted({name for record in records if (name := record.task if section.by == "task" else record.tag)})
    for name in section.experts:
        if name not in (*there, DEFAULT):
            with blamed_on(recipe, f"distill.experts.{name}"):
                raise UserError(
                    f"no prompt has the {section.by} {name!r}; the {section.by}s are {', '.join(there) or 'none'}."
                    f"{did_you_mean(name, [*there, DEFAULT])}"
                )
    for record in records:
        if expert_name(section.experts, record, section.by) not in section.experts:
            what = record.task if section.by == "task" else record.tag
            has = f"no {section.by}" if what is None else f"the {section.by} {what!r}"
            with blamed_on(recipe, "distill.experts"):
                raise UserError(f"{record.where} has {has}, which has no expert; name one, or a {DEFAULT}.")


def _require_same_tokens(folder: Path, source: Path, processor: Any) -> None:
    expert, student = (_tokens(load_config(each)) for each in (folder, source))
    for what, found in expert.items():
        if found != student[what]:
            raise UserError(f"{folder} has {what} {found}, and the student {student[what]}; an expert needs the same.")
    if load_processor(folder).tokenizer.get_vocab() != processor.tokenizer.get_vocab():
        raise UserError(f"{folder} has another tokenizer than the student, {source}; an expert needs the same.")


def _tokens(config: "UniARConfig") -> dict[str, Any]:
    vision = config.vision_config
    return {
        "visual tokens of (levels, patches, bits)": tuple(vision.code_shape),
        "visual tokens of a side, in pixels, of": vision.pixels_per_token,
        "a vocab_size of": config.text_config.vocab_size,
        "the image_token_id": config.image_token_id,
    }


def load_experts(recipe: Recipe, named: Mapping[str, NamedModel], source: Path) -> Experts | None:
    """With their weights, those of one model once; under LoRA the model that training starts from is the policy
    without its adapters. None without distillation. Raises UserError as `NamedModel.load` does."""
    if recipe.distill is None:
        return None
    on_device, models, found = recipe.distill.device == "gpu", dict[NamedModel, Reference](), {}
    for name, one in named.items():
        if one not in models:
            with blamed_on(recipe, f"distill.experts.{name}.path"):
                own = recipe.model.lora is not None and one == NamedModel(source)
                models[one] = AdapterOff() if own else FrozenCopy(one.load(recipe.model), keep_on_device=on_device)
        hidden = load_config(one.source).text_config.hidden_size
        found[name] = Expert(models[one], recipe.expert_guidance[name], hidden)
    return Experts(found, recipe.distill.by)
