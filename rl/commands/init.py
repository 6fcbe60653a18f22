"""`uniar-rl init`: a recipe from five questions, or from the options that answer them, checked with `uniar-rl plan`.

uniar-rl init my_recipe.yaml                                                    asks
uniar-rl init my_recipe.yaml --prompts prompts.jsonl --rewards ocr --gpus 8     asks for the rest
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from rl.config.checks import check_batches
from rl.config.recipe import load_recipe
from rl.plan.estimate import GIB, Plan, make_plan
from rl.plan.planned_model import planned_model
from rl.plan.simulation import Simulation
from rl.trainer.build import build_rewards, held_out_prompts, training_prompts
from uniar.decoder_sizes import DecoderSizes
from uniar.errors import UserError
from uniar.reading.files import user_path, write_whole, writing
from uniar.reading.yaml_files import dump_yaml
from uniar.shipped_files import SHIPPED, TINY, shipped_model

MODEL = "ShareLab-SII/UniAR-SFT"
OF_TINY = "quickstart.yaml"
TINY_DEFAULTS = {"prompts": "configs/prompts/shapes/train.jsonl", "rewards": "rl.tiny.shapes:Shapes"}
SMALLER = {
    "decode": {"batch_size": 1},
    "rollout": {"memory_budget_gb": 4},
    "trainer": {
        "gradient_checkpointing": True,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 64,
    },
}
"""what lowers the peak at last: less at once, as many images per update"""


def run(arguments: argparse.Namespace) -> None:
    target = arguments.recipe
    if target.exists():
        raise UserError(f"{target} is there already; name another file.")
    answers = _answers(arguments)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            base, plan = _first_that_fits(target, answers)
        except BaseException as error:
            target.unlink(missing_ok=True)
            if isinstance(error, UserError):  # about a line of a file that is not there any more
                raise UserError(re.sub(rf"^{re.escape(str(target))}(, line \d+)?: ", "", str(error))) from error
            raise
    gpus, memory = answers["gpus"], answers["memory"]
    start = f"torchrun --nproc_per_node {gpus} -m rl.train" if gpus > 1 else "uniar-rl train"
    print(
        f"written: {target}, from {base}\n"
        f"{gpus} GPU{'s' * (gpus > 1)} of {memory:g} GiB: {plan.most / GIB:.1f} GiB at its peak ({plan.peak_phase}), "
        f"{plan.images_an_update} images per update\n"
        f"what it needs:  uniar-rl plan {target} --gpus {gpus} --memory {memory:g}\n"
        f"train:          {start} {target}"
    )


def _answers(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of the command line, else of who is asked, else the default."""
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None

    def whole(text: str) -> int:
        if not text.isdecimal() or not int(text):
            raise UserError(f"{text!r} is not a number of GPUs, 1 or more; without any, 1 stands for the CPU.")
        return int(text)

    def gib(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = 0.0
        if not 0 < number < 1e6:
            raise UserError(f"{text!r} is not a number of GiB.")
        return number

    questions: dict[str, tuple[str, str | None, Callable[[str], Any]]] = {
        "model": ("model, a folder or hub id (tiny: UniAR-Tiny)", MODEL, str),
        "prompts": ("prompts to train on, a file or datasets:NAME", None, str),
        "rewards": ("rewards, with commas between (`uniar-rl rewards list`)", "ocr", str),
        "gpus": ("GPUs", str(max(1, torch.cuda.device_count())), whole),
        "memory": ("GiB of each GPU", "80" if gpu is None else f"{gpu.total_memory / GIB:.0f}", gib),
    }
    found: dict[str, Any] = {"held_out": arguments.held_out}
    for name, (question, default, read) in questions.items():
        text = getattr(arguments, name)
        if name in TINY_DEFAULTS and shipped_model(found["model"]) == TINY:
            default = TINY_DEFAULTS[name]
        if text is None and sys.stdin.isatty():
            text = input(f"{question}{'' if default is None else f' [{default}]'}: ").strip()
        if not (text := text or default):
            raise UserError(f"--{name} is missing: {question}.")
        found[name] = read(text)
    return found


def _first_that_fits(target: Path, answers: dict[str, Any]) -> tuple[str, Plan]:
    """Writes the recipe on the first base on which it fits."""
    memory, simulation, smallest = int(answers["memory"] * GIB), None, None
    for base, more in _candidates(answers["model"], answers["gpus"]):
        write_whole(target, _text(target, base, more, answers))
        recipe = load_recipe(target)
        if simulation is None:  # the same for all
            records = training_prompts(recipe)
            build_rewards(recipe, "rewards", records)
            held_out_prompts(recipe)
            simulation = Simulation(planned_model(recipe.model))
        plan = make_plan(recipe, simulation, answers["gpus"], memory)
        if plan.fits:
            check_batches(recipe, answers["gpus"], len(records))
            return base, plan
        smallest = min(smallest or plan, plan, key=lambda one: one.most)
    assert smallest is not None
    raise UserError(
        f"{answers['model']} does not fit into {answers['memory']:g} GiB on {answers['gpus']} GPU(s): of what "
        f"was tried, the least takes {smallest.most / GIB:.1f} of {smallest.usable / GIB:.1f} GiB to use."
    )


def _candidates(model: str, gpus: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Shipped recipes and changes to them, those that train most and fastest first."""
    if shipped_model(model) == TINY:
        yield OF_TINY, {}
        return
    if gpus > 1:
        yield "uniar_sft_512.yaml", {}
        yield "uniar_sft_zero3.yaml", {}
    yield "uniar_sft_lora.yaml", {}
    yield "uniar_sft_lora.yaml", SMALLER


def _text(target: Path, base: str, more: dict[str, Any], answers: dict[str, Any]) -> str:
    folder = user_path(answers["model"])
    rewards = [{"use": name.strip()} for name in answers["rewards"].split(",") if name.strip()]
    mapping: dict[str, Any] = {
        "base": base,
        "model": {"path": _from(target, answers["model"])},
        "data": {"prompts": _from(target, answers["prompts"])},
        "rewards": rewards,
        **more,
    }
    tinys_own = base == OF_TINY and all(answers[key] == value for key, value in TINY_DEFAULTS.items())
    if answers["held_out"] or not tinys_own:  # else what it holds out is of another task
        mapping["evaluate"] = {"prompts": answers["held_out"] and _from(target, answers["held_out"])}
        mapping["eval_rewards"] = []
    if folder.is_dir() and base != OF_TINY:
        side = DecoderSizes.of_checkpoint(folder).default_side
        mapping["rollout"] = {**mapping.get("rollout", {}), "height": side, "width": side}
    return (
        f"# yaml-language-server: $schema={SHIPPED / 'configs' / 'recipe.schema.json'}\n"
        f"# Written by `uniar-rl init`. What is not said here is as in {base}, which comes with uniar-rl;\n"
        "# docs/config.md has all keys. Held-out prompts (evaluate.prompts) show whether what is learnt is what was\n"
        "# meant.\n\n" + dump_yaml(mapping)
    )


def _from(target: Path, name: str) -> str:
    """A path as it is named in the recipe, whose folder it starts from; any other name is left as it is."""
    if shipped_model(name):  # whatever folder has the name, too
        return name
    path = user_path(name)
    return os.path.relpath(path, target.parent) if path.exists() and not path.is_absolute() else name
