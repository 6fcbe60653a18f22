"""`uniar-rl evaluate`: held-out prompts of a recipe, drawn and scored with any checkpoint.

uniar-rl evaluate RECIPE --model runs/NAME/final --output scores
torchrun --nproc_per_node 8 -m rl.cli evaluate RECIPE --output scores        the same scores, sooner
"""

import argparse
import dataclasses
import json
from pathlib import Path

import torch
from accelerate import Accelerator

from rl.config import Recipe
from rl.distributed import local_device, world_size
from rl.evaluate import Evaluation
from rl.pictures import sample_grid
from rl.policy_model import checkpoint_of, load_policy, load_processor
from rl.recipe import load_recipe
from rl.run_folder import json_ready
from rl.train import build_eval_rewards, build_evaluator, held_out_prompts, load_decoder
from uniar.checkpoint import require_parts, resolve_checkpoint
from uniar.errors import UserError
from uniar.processing import check_size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML recipe; its evaluate, decode and eval_rewards sections are used")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.sub=value", help="settings over the recipe's, read as YAML"
    )
    parser.add_argument("--model", help="checkpoint folder or hub id to evaluate; default: the recipe's own")
    parser.add_argument("--output", type=Path, help="folder for scores.json, details.json and samples.png")
    parser.add_argument("--device", help="such as cpu or cuda:1; default: a GPU if there is one")


def run(arguments: argparse.Namespace) -> None:
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    records = held_out_prompts(recipe)
    if not records:
        raise UserError(f"{recipe.source}: evaluate.prompts is null; name the held-out prompts to evaluate on.")
    rewards = build_eval_rewards(recipe, records)
    if arguments.model:
        source = resolve_checkpoint(arguments.model)
        require_parts(source, decoder=True)
    else:
        source = checkpoint_of(recipe.model)
    device = local_device() if arguments.device is None else torch.device(arguments.device)
    # Of several processes each has a device of its own, whichever was named.
    accelerator = Accelerator(cpu=device.type == "cpu") if world_size() > 1 else None
    device = device if accelerator is None else accelerator.device
    model = load_policy(recipe.model, source).to(device).eval()
    pixels = model.config.vision_config.pixels_per_token
    check_size(recipe.rollout.height, recipe.rollout.width, pixels, "rollout.")
    decoder = load_decoder(recipe, source, device)
    rewards.load()
    try:
        evaluation = build_evaluator(recipe, records, load_processor(source), decoder, rewards).run(model, accelerator)
    finally:
        rewards.close()
    if accelerator is None or accelerator.is_main_process:
        _report(evaluation, recipe, source, arguments.output)
    if accelerator is not None:
        accelerator.end_training()


def _report(evaluation: Evaluation, recipe: Recipe, source: Path, output: Path | None) -> None:
    for name, value in evaluation.metrics().items():
        print(f"{name.removeprefix('eval_')}: {value:.4f}")
    if output is None:
        return
    output.mkdir(parents=True, exist_ok=True)
    scores = {
        "checkpoint": str(source),
        "recipe": recipe.source,
        "evaluate": dataclasses.asdict(recipe.evaluate),
        "metrics": evaluation.metrics(),
    }
    (output / "scores.json").write_text(json.dumps(json_ready(scores), indent=2) + "\n")
    if evaluation.details:
        (output / "details.json").write_text(json.dumps(json_ready(evaluation.details), indent=2) + "\n")
    if evaluation.shown:
        tiles = [(image, record.prompt, total) for record, image, total in evaluation.shown]
        sample_grid(tiles, output / "samples.png", notes=evaluation.notes)
    print(f"written to {output}")
