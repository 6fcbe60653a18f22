"""W&B: asked before a run whether it takes one, and its own run started and ended with ours.

wandb keeps settings and key for a whole process. Afterwards they are as they were before, so who trains again in the
same process, with another key or mode, is served by what the environment says then.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from rl.config.grpo_config import RunConfig
from uniar.reading.files import reason_of

WITHHELD = {
    "WANDB__DISABLE_META": ("x_disable_meta", True),  # command line with its overrides, paths, git, machine
    "WANDB_DISABLE_GIT": ("disable_git", True),
    "WANDB_DISABLE_CODE": ("disable_code", True),
    "WANDB_HOST": ("host", ""),
    "WANDB_CONSOLE": ("console", "off"),  # what is printed, with addresses and prompts
}
"""variable with which a user has it sent after all → the setting of wandb, and our value of it"""


def refusal() -> str | None:
    """Why W&B would not take a run's metrics; None where it would, or is not asked."""
    import wandb

    try:
        with _as_it_was():
            mode = wandb.sdk.wandb_setup.singleton().settings.mode  # of the environment, or what `wandb offline` wrote
            if wandb.run is not None or mode in ("offline", "disabled", "dryrun"):
                return None
            return None if wandb.login(prompt=False) else "no key of W&B is found"
    except (wandb.Error, ValueError, RuntimeError, OSError) as error:
        return reason_of(error)


@contextmanager
def reporting(args: RunConfig) -> Iterator[None]:
    """Within the block W&B has a run for the metrics of ours, where it is to have them; one that the user has begun is
    taken, and stays open."""
    if "wandb" not in args.report_to or args.process_index != 0:
        yield
        return
    import wandb

    with _as_it_was():
        if wandb.run is not None:
            yield
            return
        withheld = {name: value for variable, (name, value) in WITHHELD.items() if variable not in os.environ}
        wandb.init(project=args.project, name=args.run_name, settings=wandb.Settings(**withheld))
        try:
            yield
        except BaseException:
            wandb.finish(exit_code=1)
            raise
        wandb.finish()


@contextmanager
def _as_it_was() -> Iterator[None]:
    """What wandb keeps for the process is forgotten after the block, where it kept nothing before."""
    import wandb

    before = wandb.sdk.wandb_setup._singleton
    try:
        yield
    finally:
        if before is None:
            wandb.teardown()
