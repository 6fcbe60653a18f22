"""`uniar-rl evaluate`: held-out prompts of a recipe drawn and scored, its questions answered, with any checkpoint.

uniar-rl evaluate RECIPE --model runs/NAME/final --output scores
torchrun --nproc_per_node 8 -m rl.cli evaluate RECIPE --output scores        the same scores, sooner
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from rl.checkpoint.layout import CHECKPOINT, ENVIRONMENT
from rl.config.recipe import load_recipe
from rl.config.sections import Recipe
from rl.data.questions import QuestionRecord
from rl.distributed.setup import world_size
from rl.evaluation.evaluate import Evaluation
from rl.evaluation.understanding import Understanding
from rl.policy.evaluated import NamedModel, named_model
from rl.policy.loading import checkpoint_of
from rl.records.environment import environment
from rl.run.folder import RunFolder
from rl.run.pictures import sample_grid
from rl.run.records import json_ready
from rl.scoring.scorer import LocalScorer
from rl.trainer.build import (
    build_examiner,
    check_prompts,
    held_out_questions,
    load_decoder,
    load_episodes,
)
from rl.trainer.held_out import build_evaluators, check_sets, held_out_sets, with_rewards
from uniar.checkpoint import load_processor
from uniar.errors import UserError
from uniar.inspection import inspect_checkpoint
from uniar.placement import choose_device
from uniar.reading.files import remove_unfinished, require_writable, write_whole, writing


def run(arguments: argparse.Namespace) -> None:
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    load_episodes(recipe)
    sets, questions = held_out_sets(recipe), held_out_questions(recipe)
    records = [record for one in sets for record in one.records]
    if not records and not questions:
        raise UserError(
            f"{recipe.source}: evaluate.prompts and understanding.questions are null, and evaluate.sets is empty; name "
            "what to evaluate on."
        )
    if arguments.output is not None:
        if RunFolder(arguments.output).was_begun:
            raise UserError(
                f"--output {arguments.output} is the folder of a run, whose own evaluations this one would replace; "
                "name another folder."
            )
        require_writable(arguments.output)
        with writing(arguments.output):
            arguments.output.mkdir(parents=True, exist_ok=True)
            remove_unfinished(arguments.output, "*", "*/*")
    sets = with_rewards(sets) if records else []
    if arguments.model is not None:
        named = named_model(arguments.model)
        inspect_checkpoint(named.source, decoder=bool(records))
    else:
        named = NamedModel(checkpoint_of(recipe.model))
    source = named.source
    check_sets(sets, source)
    processor = load_processor(source)
    check_prompts(processor, [], records, questions)
    device = choose_device(arguments.device)
    # Of several processes each has a device of its own, whichever was named.
    accelerator = Accelerator(cpu=device.type == "cpu") if world_size() > 1 else None
    device = device if accelerator is None else accelerator.device
    average = named.is_checkpoint and recipe.evaluate.ema
    model = named.load(recipe.model, average=average).to(device).eval()
    evaluation = understanding = None
    if records:
        decoder = load_decoder(recipe, source, device)
        scorers = {one.key: LocalScorer(decoder, one.scored, processor) for one in sets}
        suites = list({id(one.rewards): one.rewards for one in sets}.values())
        for suite in suites:
            suite.load()
        try:
            evaluation = build_evaluators(sets, processor, scorers).run(model, accelerator)
        finally:
            for suite in suites:
                suite.close()
    if questions:
        understanding = build_examiner(recipe, questions, processor).run(model, accelerator)
    if accelerator is None or accelerator.is_main_process:
        _report(recipe, named.trained or source, evaluation, understanding, questions, arguments.output)


def _report(
    recipe: Recipe,
    checkpoint: Path,
    evaluation: Evaluation | None,
    understanding: Understanding | None,
    questions: Sequence[QuestionRecord],
    output: Path | None,
) -> None:
    metrics = {name: value for part in (evaluation, understanding) if part for name, value in part.metrics().items()}
    for name, value in metrics.items():
        print(f"{name.removeprefix('eval_')}: {value:.4f}")
    if output is None:
        return

    def write(name: str, content: dict) -> None:
        write_whole(output / name, json.dumps(json_ready(content), indent=2) + "\n")

    settings = {name: dataclasses.asdict(getattr(recipe, name)) for name in ("evaluate", "understanding")}
    with writing(output):
        folder = RunFolder(output)
        folder.forget_evaluation_at(_step_of(checkpoint))
        for earlier in ("understanding.json", "samples.png"):  # of another model perhaps
            (output / earlier).unlink(missing_ok=True)
        write("scores.json", {"checkpoint": str(checkpoint), "recipe": recipe.source, **settings, "metrics": metrics})
        if understanding is not None:
            write("understanding.json", understanding.columns())
        write(ENVIRONMENT, environment(world_size()))
        folder.save_evaluation(_step_of(checkpoint), evaluation, understanding)
        if questions:
            folder.save_questions(questions, recipe.records.picture_size)
        if evaluation is not None and evaluation.shown:
            sample_grid(evaluation.shown, output / "samples.png", notes=evaluation.notes)
    print(f"written to {output}")


def _step_of(checkpoint: Path) -> int:
    """The update that a checkpoint is of, as far as its name tells; else 0."""
    number = checkpoint.name.removeprefix(CHECKPOINT)
    return int(number) if number.isdecimal() else 0
