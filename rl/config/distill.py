"""What a recipe can say of distillation: see rl/config/sections.py."""

# ruff: noqa: RUF009 (`setting` wraps dataclasses.field, which the rule would let pass)

import dataclasses
from typing import Literal

from rl.algorithm.guidance import GuidanceSettings
from rl.config.measured_from import MeasuredFrom
from rl.config.model import ModelSection, Place
from uniar.reading.settings import setting


@dataclasses.dataclass(frozen=True)
class ExpertSection(MeasuredFrom):
    """A policy that the student is drawn to, with the student's tokenizer and its bits per token."""

    path: str | None = setting(
        "What `uniar-rl evaluate --model` takes: a UniAR checkpoint (a folder or a hub id), a run's checkpoint-N, or "
        "an adapter; null: the model that training starts from.",
        None,
        path=True,
    )


@dataclasses.dataclass(frozen=True)
class DistillSection:
    """On-policy distillation: the student is trained on what it draws and writes itself, towards the expert of each
    prompt. See [distillation](distillation.md)."""

    experts: dict[str, ExpertSection] = setting("Task of a prompt → its expert; `default` is for all other prompts.")
    by: Literal["task", "tag"] = setting(
        "What names a prompt's expert: its `task`, or its metadata's `tag`, the skill that it is about (else "
        "`category` or `edit_type`).",
        "task",
    )
    device: Place = setting(
        "Where experts wait: cpu has one at a time on the training device, copied there for each rollout from "
        "page-locked memory that each process takes for each expert; gpu keeps all of them there.",
        "cpu",
    )

    def guidance(self, student: GuidanceSettings) -> dict[str, GuidanceSettings]:
        """Of each expert, by name."""
        return {name: expert.guidance(student) for name, expert in self.experts.items()}

    def models(self, student: ModelSection) -> int:
        """How many models experts are, those of one path once. Under LoRA the student's own start is none: it is the
        policy without its adapters."""
        own = {None, student.path} if student.lora is not None else set()
        return len({expert.path or student.path for expert in self.experts.values()} - own)
