"""The held-out sets of a recipe: their prompts, rewards and settings, and what evaluates them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rewards import RewardSuite
from rl.config.evaluation_sets import sets_of
from rl.config.sections import Recipe
from rl.data.prompts import PromptRecord
from rl.evaluation.evaluate import Evaluator
from rl.evaluation.several_sets import SeveralSets
from rl.policy.samples import DrawSettings
from rl.scoring.scorer import ScoredList, Scorer
from rl.trainer.build import build_eval_rewards, build_evaluator, check_model, held_out_prompts, load_episodes
from uniar.errors import UserError


@dataclass(frozen=True)
class HeldOut:
    """One set of evaluations."""

    name: str | None
    """None: the one of `evaluate.prompts`"""
    recipe: Recipe
    """with the set's own values in their places"""
    records: Sequence[PromptRecord]
    rewards: RewardSuite | None = None

    @property
    def key(self) -> str:
        """What training and decoding processes call it."""
        return "eval_rewards" if self.name is None else f"eval_rewards/{self.name}"

    @property
    def scored(self) -> ScoredList:
        assert self.rewards is not None  # `with_rewards` has built them
        return ScoredList(self.rewards, DrawSettings.for_evaluation(self.recipe), self.records)


def held_out_sets(recipe: Recipe) -> list[HeldOut]:
    """The sets with their prompts; without `evaluate.sets` the one of `evaluate.prompts`, which may have none. Raises
    UserError as `load_prompts` does."""
    found = []
    for name, own in sets_of(recipe).items():
        with _blamed_on(name):
            found.append(HeldOut(name, own, held_out_prompts(own)))
            if own.rollout.episodes != recipe.rollout.episodes:
                load_episodes(own, {record.task for record in found[-1].records}, f"evaluate.sets.{name}.episodes")
    return found


def with_rewards(sets: Sequence[HeldOut], rewards: RewardSuite | None = None) -> list[HeldOut]:
    """The sets with their rewards, not loaded yet; sets with the same entries share them, so that no model is there
    twice. rewards: those of training, which serve where a recipe has no others. Raises UserError for rewards that
    cannot score the prompts of a set."""
    found: list[HeldOut] = []
    built: dict[str, RewardSuite] = {}
    for one in sets:
        with _blamed_on(one.name):
            suite = build_eval_rewards(one.recipe, one.records, rewards)
        key = repr(one.recipe.eval_rewards)
        found.append(replace(one, rewards=built.setdefault(key, suite)))
    return found


def check_sets(sets: Sequence[HeldOut], source: Path) -> None:
    """Raises UserError for a size or ratio that the checkpoint in `source` cannot draw."""
    for one in sets:
        with _blamed_on(one.name):
            check_model(one.recipe, source, one.records)


def build_evaluators(
    sets: Sequence[HeldOut], processor: Any, scorers: Mapping[str, Scorer]
) -> Evaluator | SeveralSets | None:
    """None where nothing is held out. scorers: by the keys of the sets."""
    evaluators = [build_evaluator(one.recipe, one.records, processor, scorers[one.key], one.name) for one in sets]
    there = [evaluator for evaluator in evaluators if evaluator is not None]
    if there and there[0].name is not None:
        return SeveralSets(there)
    return there[0] if there else None


@contextmanager
def _blamed_on(name: str | None) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise error if name is None else UserError(f"evaluate.sets.{name}: {error}") from error
