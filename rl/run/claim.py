"""Which folder a run takes, and what is left to do in it: all of it, what follows a checkpoint, or nothing."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from rl.checkpoint.exported_folder import require_replaceable
from rl.checkpoint.folder_lock import FolderLock
from rl.checkpoint.folders import checkpoints, fault, newest_good, saved_step
from rl.checkpoint.resumed_recipe import check_resumed
from rl.config.grpo_config import RunConfig
from rl.config.recipe import blamed_on
from rl.config.sections import Recipe
from rl.records.environment import environment
from rl.run.data_state import check_unchanged
from rl.run.finished import finished, require_a_way_on
from rl.run.folder import RunFolder
from uniar.errors import UserError
from uniar.reading.files import require_writable


@dataclass(frozen=True)
class Claimed:
    """A run's folder, and what is left to do in it."""

    folder: RunFolder
    checkpoint: Path | None = None
    """to go on from; None: from the start"""
    finished: bool = False


def check_claim(recipe: Recipe, resume: bool) -> None:
    """Raises UserError for what a look at the run's folder can refuse before anything is loaded: a place that cannot be
    written, another run, and a changed setting over which a checkpoint's state would win. For the first process.

    The checkpoint that is gone on from is looked at again once the folder is taken."""
    goes_on = resume or recipe.resume == "auto"
    with blamed_on(recipe, "output_dir"):
        require_writable(Path(recipe.output_dir))
        folder = RunFolder.chosen(recipe, resume=goes_on)
        if not folder.was_begun and Path().resolve().is_relative_to(folder.path.resolve()):
            raise UserError(f"'{folder.path}' is the current folder or one above it; name a folder for the run alone.")
    for saved in reversed(checkpoints(folder.path) if goes_on else []):
        try:
            check_resumed(recipe, saved)
            return
        except UserError:
            if fault(saved) is None:  # reads all of it, which may take minutes
                raise


def claim_folder(
    recipe: Recipe, args: RunConfig, resume: bool, lock: FolderLock, data: dict[str, dict[str, Any]]
) -> Claimed:
    """The main process chooses, the others are told. Whatever can be refused is, before anything in the folder is
    changed."""
    chosen: list[Claimed | None] = [None]
    if args.process_index == 0:
        goes_on = resume or recipe.resume == "auto"
        folder = RunFolder.chosen(recipe, resume=goes_on)
        if resume and not folder.was_begun:
            raise UserError(f"{folder.path} holds no run to resume; leave out --resume to begin one.")
        require_replaceable(folder.final)
        folder.take(lock)
        if goes_on and (record := finished(folder, recipe, args, held=lock.holds)) is not None:
            print(f"{folder.path} is finished after update {record['step']}; final/ is left as it is", flush=True)
            if record["said"]:
                print(record["said"], flush=True)
            chosen = [Claimed(folder, finished=True)]
        else:
            chosen = [Claimed(folder, _start_of(folder, recipe, resume, data) if goes_on else None)]
            folder.write_config(recipe)
            folder.write_data(data)
            folder.write_environment(environment(args.world_size))
    (claimed,) = broadcast_object_list(chosen)
    args.describe(replace(recipe, output_dir=str(claimed.folder.path)))
    return claimed


def _start_of(folder: RunFolder, recipe: Recipe, resume: bool, data: dict[str, dict[str, Any]]) -> Path | None:
    """The checkpoint to go on from; None for a run that was ended before its first. Raises UserError where it cannot
    go on."""
    checkpoint = newest_good(folder.path)
    if checkpoint is not None:
        saved_step(checkpoint)
        check_resumed(recipe, checkpoint)
        check_unchanged(checkpoint / folder.data.name, data)
        return checkpoint
    require_a_way_on(folder)
    if (damaged := checkpoints(folder.path)) and resume:
        raise UserError(
            f"{folder.path} has no whole checkpoint to resume from: of {damaged[-1].name}, {fault(damaged[-1])}."
        )
    if folder.config.exists():
        print(f"{folder.path} has no checkpoint yet: the run begins anew", flush=True)
    return None
