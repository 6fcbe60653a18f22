"""What a reader of a run should worry about, in plain words."""

from collections.abc import Iterator

from rl.report.paired import Difference
from rl.report.run_data import RunData, mean
from rl.run.curves import GUARDS_SAID, rise

_FEW = 0.5
_WINDOW = 10


def warnings_of(run: RunData, gain: Difference | None) -> list[str]:
    """Sentences; none where nothing looks wrong. gain: of the held-out total, first to last evaluation."""
    return [
        sentence for part in (_guards, _groups, _rewards, _policy, _settings, _failures) for sentence in part(run, gain)
    ]


def _last(run: RunData, key: str) -> float | None:
    """Its mean over the last updates."""
    return mean([line.get(key) for line in run.training[-_WINDOW:]])


def _guards(run: RunData, gain: Difference | None) -> Iterator[str]:
    """What the run itself said at the last evaluation that was past a limit of watch.guards."""
    said = [line[GUARDS_SAID] for line in run.lines if isinstance(line.get(GUARDS_SAID), list) and line[GUARDS_SAID]]
    yield from (str(sentence) for sentence in (said[-1] if said else ()))


def _groups(run: RunData, gain: Difference | None) -> Iterator[str]:
    share = _last(run, "frac_reward_zero_std")
    if share is not None and share > _FEW:
        yield (
            f"{share:.0%} of the groups had no differences in their rewards over the last updates: they teach nothing. "
            "Try rollout.dynamic_sampling, larger groups, or partial credit."
        )


def _rewards(run: RunData, gain: Difference | None) -> Iterator[str]:
    rewards = [line["reward"] for line in run.training if line.get("reward") is not None]
    found = rise(rewards)
    if gain is None or found is None:
        return
    rose, error = found
    if rose > 0 and rose > 2 * error and not gain.better:
        yield (
            f"The training reward rose by {rose:.3g} while the held-out total did not ({gain.gain:+.3g}, 95% interval "
            f"{gain.low:+.3g} to {gain.high:+.3g}): the reward may be gamed, or the held-out prompts ask for something "
            "else. Look at the pictures."
        )
    if gain.worse:
        yield f"The held-out total fell by {-gain.gain:.3g}, which is more than chance."


def _policy(run: RunData, gain: Difference | None) -> Iterator[str]:
    limit = None if run.recipe is None else run.recipe.watch.kl_limit
    of = "" if any("kl" in line for line in run.training) else "text/"  # as rl/trainer/watch.py has it
    past = [line["step"] for line in run.training if limit is not None and (line.get(f"{of}kl") or 0.0) > limit]
    if past:
        times = f"in {len(past)} updates, first in {past[0]}"
        said = f"The KL to the reference was past watch.kl_limit ({limit:g}) {times}."
        if not of and run.recipe is not None and run.recipe.reference_draws_otherwise:
            said += " It begins above 0, because algorithm.reference draws otherwise than rollouts."
        yield said
    for key, unit, what in (
        ("entropy", "bit", "draws ever fewer pictures"),
        ("text/entropy", "token", "writes ever fewer texts"),
    ):
        entropy = [line[key] for line in run.training if line.get(key) is not None]
        if len(entropy) > 4 and entropy[-1] < 0.2 * entropy[0]:
            fell = f"from {entropy[0]:.3g} to {entropy[-1]:.3g} nats per {unit}"
            yield f"The entropy fell {fell}: the policy {what}."
    clipped = _last(run, "clip_ratio/region_mean")
    if clipped is not None and clipped > 0.3:
        yield f"{clipped:.0%} of the bits are clipped: too many updates per rollout, or too high a learning rate."


def _settings(run: RunData, gain: Difference | None) -> Iterator[str]:
    if run.otherwise and run.training and run.held_out:
        yield (
            f"Held-out scores are set otherwise than training ones ({run.otherwise}); their curves do not share an "
            "axis."
        )


def _failures(run: RunData, gain: Difference | None) -> Iterator[str]:
    keys = sorted({key for line in run.training for key in line if key.endswith("/failed") and line[key]})
    for key in keys:
        count = sum(line.get(key) or 0 for line in run.training)
        yield f"The reward {key.split('/')[1]} failed on {count:.0f} training samples, which were left without it."
    if run.held_out and (left_out := run.held_out[-1].get("eval_excluded_samples")):
        yield (
            f"{left_out:.0f} held-out samples of the last evaluation have no total, because a reward failed or none "
            "applies."
        )
