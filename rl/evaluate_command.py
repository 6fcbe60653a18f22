"""`uniar-rl evaluate`: held-out prompts of a recipe, drawn and scored with any checkpoint."""

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from rl.pictures import sample_grid
from rl.policy_model import checkpoint_of, load_policy, load_processor
from rl.recipe import check_size, load_recipe
from rl.train import build_evaluator, build_rewards, held_out_prompts, load_decoder
from uniar.checkpoint import require_parts, resolve_checkpoint
from uniar.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="YAML recipe; its evaluate, decode and eval_rewards sections are used")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.sub=value", help="settings over the recipe's, read as YAML"
    )
    parser.add_argument("--model", help="checkpoint folder or hub id to evaluate; default: the recipe's own")
    parser.add_argument("--output", type=Path, help="folder for scores.json, details.json and samples.png")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")


def run(arguments: argparse.Namespace) -> None:
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    records = held_out_prompts(recipe)
    if not records:
        raise UserError(f"{recipe.source}: evaluate.prompts is null; name the held-out prompts to evaluate on.")
    rewards = build_rewards(recipe, "eval_rewards" if recipe.eval_rewards else "rewards", records)
    if arguments.model:
        source = resolve_checkpoint(arguments.model)
        require_parts(source, decoder=True)
    else:
        source = checkpoint_of(recipe.model)
    model = load_policy(recipe.model, source).to(arguments.device).eval()
    check_size(recipe.rollout.height, recipe.rollout.width, model.config.vision_config.pixels_per_token)
    decoder = load_decoder(recipe, source, arguments.device)
    rewards.load()
    evaluation = build_evaluator(recipe, records, load_processor(source), decoder, rewards).run(model)

    for name, value in evaluation.metrics().items():
        print(f"{name.removeprefix('eval_')}: {value:.4f}")
    if arguments.output is None:
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    scores = {
        "checkpoint": str(source),
        "recipe": recipe.source,
        "evaluate": dataclasses.asdict(recipe.evaluate),
        "metrics": evaluation.metrics(),
    }
    (arguments.output / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    if evaluation.details:
        (arguments.output / "details.json").write_text(json.dumps(evaluation.details, indent=2) + "\n")
    if evaluation.shown:
        tiles = [(image, record.prompt, total) for record, image, total in evaluation.shown]
        sample_grid(tiles, arguments.output / "samples.png", notes=evaluation.notes)
    print(f"written to {arguments.output}")
