"""Trains a UniAR checkpoint with GRPO on visual bits and written text.

For each batch of prompts: play G samples of each, drawing with classifier-free guidance, writing, or both in turns;
decode drawings through the SD3 decoder, score what was made, turn scores into advantages within the group, replay the
turns, take a clipped policy-gradient step with an exact KL term to the starting model. No critic, no reward model
training, no asynchronous rollout. A recipe with `distill` has experts in place of rewards: samples are played, and the
step is that of the KL term to the experts.

    uniar-rl train configs/quickstart.yaml                                   one process
    torchrun --nproc_per_node 8 -m rl.train configs/uniar_sft_512.yaml       one process per GPU
    uniar-rl train RECIPE algorithm.beta=0.02 trainer.max_steps=200          overrides
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

from accelerate import PartialState
from transformers import PrinterCallback, ProgressCallback, set_seed

from rl.checkpoint.folder_lock import FolderLock
from rl.checkpoint.folders import writing_records
from rl.checkpoint.resume import load_weights, only_weights_of
from rl.config.checks import check_batches, refresh_risk, rounding_risk
from rl.config.grpo_config import grpo_config
from rl.config.precision import precision_risk
from rl.config.recipe import blamed_on, load_loss, load_recipe
from rl.config.sections import Recipe
from rl.distributed.engine import gathered_state, prepare_deepspeed_on_cpu
from rl.distributed.peers import Peers
from rl.distributed.process_roles import check_rewards, take_role
from rl.distributed.setup import (
    is_first_process,
    local_device,
    use_local_device,
    world_size,
)
from rl.evaluation.evaluate import held_out_otherwise
from rl.export.model_card import card_of_run
from rl.export.writing import export_model
from rl.plan.own_run import keep_layers, memory_here, own_plan
from rl.plan.summary import summary
from rl.policy.experts import load_experts, named_experts
from rl.policy.loading import checkpoint_of, load_config, load_policy, reference_for, trainable
from rl.policy.samples import DrawSettings
from rl.run.claim import check_claim, claim_folder
from rl.run.console import RunConsole, print_head
from rl.run.data_state import data_state, measured_on
from rl.run.finished import note_finished, report
from rl.run.folder import RunFolder
from rl.scoring.decoder_process import DecoderProcess
from rl.scoring.scorer import DecoderConnection, LocalScorer, RemoteScorer, ScoredList, Scorer
from rl.trainer.arguments_check import check_trainer
from rl.trainer.build import (
    build_examiner,
    build_rewards,
    build_text_kl,
    check_model,
    check_prompts,
    held_out_questions,
    load_decoder,
    load_episodes,
    text_kl_questions,
    training_prompts,
)
from rl.trainer.callbacks import RunCallback
from rl.trainer.extensions.collection import TrainerExtensions
from rl.trainer.extensions.early_stop import check_metric
from rl.trainer.held_out import build_evaluators, check_sets, held_out_sets, with_rewards
from rl.trainer.stopping import Stopper
from rl.trainer.trainer import UniARTrainer
from rl.trainer.wandb_session import reporting
from rl.trainer.watch import Watch
from uniar.checkpoint import load_processor
from uniar.decoder_sizes import DecoderSizes
from uniar.errors import UserError

logger = logging.getLogger(__name__)


def train(recipe: Recipe, resume: bool = False, *, head: bool = False) -> RunFolder | None:
    """Runs a recipe from start, or with `resume` from its newest good checkpoint, to the exported checkpoint.
    head: prints first what it is about to do.

    Returns the run's folder; None when a signal or `max_runtime` ended it early, saved and ready to be resumed, and in
    a process that decodes for others. Raises UserError for input that cannot work, as far as possible before any weight
    is loaded.
    """
    with FolderLock() as lock:
        return _train(recipe, resume, lock, head)


def _train(recipe: Recipe, resume: bool, lock: FolderLock, head: bool) -> RunFolder | None:
    processes = world_size()
    with blamed_on(recipe, "decode.processes"):
        role = take_role(recipe.decode.processes)
    decoding = DecoderProcess(role.socket, role.clients) if role is not None and role.decodes else None
    check_batches(recipe, world_size())
    check_trainer(recipe)
    if is_first_process():
        check_claim(recipe, resume)
    records = training_prompts(recipe)
    check_batches(recipe, world_size(), len(records))
    for risk in (precision_risk(recipe), rounding_risk(recipe), refresh_risk(recipe)):
        if risk is not None and is_first_process():
            logger.warning("WARNING: %s", risk)
    sets = held_out_sets(recipe)
    held_out = [record for one in sets for record in one.records]
    questions, kl_questions = held_out_questions(recipe), text_kl_questions(recipe)
    load_loss(recipe)
    episodes = load_episodes(recipe, {record.task for record in (*records, *held_out)})
    turns = episodes.turns(record.task for record in records)
    rewards = build_rewards(recipe, "rewards", records)
    sets = with_rewards(sets, rewards)
    scored = {"rewards": ScoredList(rewards, DrawSettings.for_training(recipe), records)}
    scored |= {one.key: one.scored for one in sets}
    suites = list({id(each.rewards): each.rewards for each in scored.values()}.values())
    check_metric(recipe, {one.name: one.scored.rewards.names for one in sets})
    check_rewards(recipe, [reward for suite in suites for reward in suite.rewards])
    with blamed_on(recipe, "model.path" if recipe.model.preset is None else "model.preset"):
        source = checkpoint_of(recipe.model)
        vision = load_config(source).vision_config
    check_model(recipe, source, records)
    check_sets(sets, source)
    processor = load_processor(source)
    check_prompts(processor, records, held_out, [*questions, *kl_questions])
    named = named_experts(recipe, source, processor, records)

    memory = memory_here()

    decoder = None
    if role is None or role.decodes:
        # Before the trainer's arguments: under ZeRO-3 whatever is loaded after them is sharded.
        use_local_device()
        decoder = load_decoder(recipe, source, local_device())
        for suite in suites:
            suite.load()
    if decoding is not None:
        assert decoder is not None
        try:
            decoding.serve(decoder, scored)
        finally:
            for suite in suites:
                suite.close()
        return None
    prepare_deepspeed_on_cpu(recipe)
    args = grpo_config(recipe, vision, turns)
    plan = own_plan(recipe, source, processes, records, processor.tokenizer, memory, args, head=head)
    model = load_policy(recipe.model, source)
    keep_layers(recipe, plan, model, args)
    connection = None if role is None else DecoderConnection(role.socket)
    scorers: dict[str, Scorer] = {}
    for key, each in scored.items():
        if connection is not None:
            scorers[key] = RemoteScorer(connection, key, each, DecoderSizes.of_checkpoint(source))
        elif decoder is not None:
            scorers[key] = LocalScorer(decoder, each, processor)
    data = data_state(recipe, records, held_out, questions, kl_questions)
    claimed = claim_folder(recipe, args, resume, lock, data)
    folder, checkpoint = claimed.folder, claimed.checkpoint
    if claimed.finished:
        for suite in suites:
            suite.close()
        if connection is not None:
            connection.close()
        return folder
    if head and is_first_process():
        print_head(recipe.source, {**summary(recipe, plan, processes), "folder": str(folder.path)})
    console = RunConsole(speaks=args.process_index == 0, bar=not recipe.rollout.show_progress)
    set_seed(recipe.seed)  # adapters start from random values
    evaluator = build_evaluators(sets, processor, scorers)
    stopper = Stopper(None if recipe.max_runtime is None else recipe.max_runtime * 3600)
    held = recipe.evaluate
    callback = RunCallback(
        folder,
        evaluator,
        stopper,
        lock,
        lambda target: export_from_trainer(trainer, source, folder, target),
        console,
        every=held.every,
        at_start=held.at_start,
        at_end=held.at_end,
        examiner=build_examiner(recipe, questions, processor),
        examine_every=recipe.understanding.every or held.every,
        held_out_as=held_out_otherwise(recipe),
    )
    reference, experts = reference_for(recipe, source), load_experts(recipe, named, source)
    extensions = TrainerExtensions.of(recipe, reference, records, measured_on(data)["total"])
    policy = trainable(model, recipe.model.lora, turns)
    if only_weights := checkpoint is not None and only_weights_of(checkpoint, args):
        load_weights(policy, checkpoint, source)
    trainer = UniARTrainer(
        recipe,
        args,
        policy,
        processor,
        scorers["rewards"],
        records,
        Watch(recipe.watch),
        reference,
        build_text_kl(recipe, kl_questions, processor, model.config),
        extensions,
        callbacks=[callback, stopper],
        only_weights=only_weights,
        turns=turns,
        scores_seen=callback.scores_seen,
        groups_seen=folder.save_groups,
        experts=experts,
    )
    for ours in (callback, stopper):
        ours.attach(trainer)
    for theirs in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(theirs)
    try:
        with writing_records(folder.path), Peers(), stopper, reporting(args), console.shown():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    finally:
        if args.process_index == 0:
            folder.release_if_unused()
        for suite in suites:
            suite.close()
    if connection is not None:
        connection.close()
    state = trainer.state
    if stopper.stopped:
        saved = "nothing is saved" if args.save_strategy == "no" else "go on with --resume"
        print(f"stopped by {stopper.stopped} after update {state.global_step}; {saved}", flush=True)
        return None
    trainer.step.watch.require_updates()
    lock.require_there()
    early_stop, guards = extensions.early_stop, extensions.guards
    lines = [] if guards is None else guards.report(state.global_step, state.max_steps)
    passed = recipe.watch.guards if lines else None
    lines += [] if early_stop is None else [early_stop.report(state.global_step, state.max_steps, folder.best)]
    said = "\n".join(lines) or None
    if said is not None and args.process_index == 0:
        print(said, flush=True)
    with writing_records(folder.path), trainer.evaluated_weights():
        note = partial(note_finished, folder, recipe=recipe, args=args, state=state, said=said, passed=passed)
        export_from_trainer(trainer, source, folder, folder.final, note)
        if args.process_index == 0:
            callback.write_report(running=False)
    return folder


def export_from_trainer(
    trainer: UniARTrainer, source: Path, folder: RunFolder, target: Path, note: Callable[[Path], None] | None = None
) -> None:
    """Writes the policy of a run as a self-contained checkpoint; collective where weights are sharded. note: see
    `export_model`."""
    accelerator = trainer.accelerator
    state = gathered_state(trainer)
    if accelerator.is_main_process:
        card = card_of_run(folder, trainer.recipe, source, trainer.state.global_step, accelerator.num_processes)
        export_model(accelerator.unwrap_model(trainer.model), source, target, state, card=card, note=note)
    accelerator.wait_for_everyone()


def run(arguments: argparse.Namespace) -> None:
    """`uniar-rl train`, and `uniar-rl distill`, which is the same for a recipe with the section."""
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    if arguments.command == "distill" and recipe.distill is None:
        raise UserError(
            f"{recipe.source} has no section distill, which names the experts, such as distill: {{experts: {{default: "
            "{path: FOLDER}}}; without experts use `uniar-rl train`."
        )
    folder = train(recipe, resume=arguments.resume, head=True)
    if folder is not None and PartialState().is_main_process:
        report(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m rl.train`, for launchers: the same as `uniar-rl train`."""
    from rl.cli import main as command_line

    arguments = sys.argv[1:] if argv is None else argv
    # The deepspeed launcher adds --local_rank=N, which LOCAL_RANK says as well.
    words = ["train", *(word for word in arguments if not word.startswith("--local_rank="))]
    return command_line(words, is_program=argv is None)


class _CallableModule(ModuleType):
    """`from rl import train` names this module, which launchers start as `rl.train`; called, it is the function."""

    def __call__(self, recipe: Recipe, resume: bool = False) -> RunFolder | None:
        return train(recipe, resume)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    sys.exit(main())
