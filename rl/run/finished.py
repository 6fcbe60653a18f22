"""A run that is finished: what says so, whether another start of it has anything left to do, and its last lines."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerState
from trl import GRPOConfig

from rl.checkpoint.exported_folder import finish_appearing
from rl.checkpoint.folders import fault, listed
from rl.checkpoint.layout import CARD
from rl.config.sections import Recipe
from rl.config.watch import GuardsSection
from rl.evaluation.evaluate import paired_gain
from rl.run.folder import RunFolder
from uniar.errors import UserError
from uniar.reading.files import read_json, write_whole


def note_finished(
    folder: RunFolder,
    written: Path,
    recipe: Recipe,
    args: GRPOConfig,
    state: TrainerState,
    said: str | None,
    passed: GuardsSection | None = None,
) -> None:
    """Says which update the model in final/ is of, and which files it has. written: those files, where they are before
    the folder has its name. said: what the console was told of the end. passed: the limits that ended the run.

    README.md is not among those files: whoever keeps the model may write into it.
    """
    stop = recipe.evaluate.early_stop if state.global_step < state.max_steps and passed is None else None
    record = {
        "step": state.global_step,
        "epochs": args.num_train_epochs if args.max_steps <= 0 else None,
        "patience": None if stop is None else stop.patience,
        "passed": None if passed is None else asdict(passed),
        "average": recipe.evaluate.ema,
        "said": said,
        "files": listed(written, CARD),
    }
    write_whole(folder.finished, json.dumps(record, indent=2) + "\n")


def finished(folder: RunFolder, recipe: Recipe, args: GRPOConfig, *, held: bool) -> dict[str, Any] | None:
    """The record of a run that has nothing left to do under this recipe; None where there is something: further
    updates, or a final/ that is not there as it was written. held: whether no other process can be about to give
    final/ its name; it gets it here then."""
    if not folder.finished.is_file():
        return None
    whole = fault(folder.final, folder.finished) is None
    if not whole and not (held and finish_appearing(folder.final, folder.finished)):
        return None
    record = read_json(folder.finished)
    stop, guards = recipe.evaluate.early_stop, recipe.watch.guards
    try:
        if record.get("passed") is not None and guards is not None and asdict(guards) == record["passed"]:
            over = True
        elif stop is not None and record["patience"] is not None:
            over = stop.patience <= record["patience"]
        elif args.max_steps > 0:
            over = args.max_steps <= record["step"]
        else:
            over = record["epochs"] is not None and args.num_train_epochs <= record["epochs"]
        return record if over and record["average"] == recipe.evaluate.ema else None
    except (KeyError, TypeError):
        return None


def require_a_way_on(folder: RunFolder) -> None:
    """Raises UserError where a run without a checkpoint would begin anew and replace a model that is trained."""
    if folder.final.exists():
        raise UserError(
            f"{folder.path} has a trained model in {folder.final.name}/, and no whole checkpoint to train on from; "
            "choose another output_dir, or move that folder away."
        )


def report(folder: RunFolder) -> None:
    """The last lines of a run: where things are, and what the held-out reward did."""
    totals = folder.evaluated_totals()
    if len(totals) > 1:
        gain, error = paired_gain(totals[min(totals)], totals[max(totals)])
        print(f"gain {gain:+.4f} ± {error:.4f} (mean and standard error over paired held-out samples)")
    if len(answered := folder.evaluated_understanding()) > 1:
        before, after = answered[min(answered)], answered[max(answered)]
        print(
            f"held-out questions: exact match {before['exact_match']:.1%} -> {after['exact_match']:.1%}, "
            f"P(answer) {before['p_answer']:.3g} -> {after['p_answer']:.3g}, "
            f"per token {before['p_token']:.3g} -> {after['p_token']:.3g}"
        )
    print(f"checkpoint {folder.final}  plot {folder.plot}  sample grids {folder.samples}")
    if totals:
        for name, rewards in _of_sets(folder, sorted({min(totals), max(totals)})).items():
            print(f"held-out {name}: {' -> '.join(f'{reward:.4f}' for reward in rewards)}")
        first, last = (totals[step].nanmean().item() for step in (min(totals), max(totals)))
        print(f"held-out reward: {f'{first:.4f} -> ' if len(totals) > 1 else ''}{last:.4f}", flush=True)


def _of_sets(folder: RunFolder, steps: Sequence[int]) -> dict[str, list[float]]:
    """Name of each of `evaluate.sets` → its mean reward at these steps."""
    found: dict[str, list[float]] = {}
    for line in folder.read():
        for key, value in line.items() if line["step"] in steps and "eval_reward" in line else ():
            if key.startswith("eval_") and key.endswith("/reward"):
                found.setdefault(key.removeprefix("eval_").removesuffix("/reward"), []).append(value)
    return found
