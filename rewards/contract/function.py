"""A plain function as a reward, in TRL's style: `def f(prompts, images, **columns) -> list[float | None]`."""

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rewards.contract.base import Reward, RewardBatch
from rewards.contract.parameters import bind_parameters
from uniar.errors import UserError, did_you_mean

logger = logging.getLogger(__name__)

OWN_COLUMNS = ("prompts", "images", "task", "metadata", "bits", "source_images", "texts")

_ELSEWHERE = {"completions": "images", "completion_ids": "bits", "prompt": "prompts", "image": "images"}
"""What TRL and others call a column, and what it is called here."""


class FunctionReward(Reward):
    """Calls a function by keyword with the columns of `RewardBatch.columns` that its signature names (all of them if
    it takes `**columns`). What it names without a default is a column, a list with None for samples that lack it;
    where all samples are known beforehand, `check_columns` refuses one that none of them has. What has a default is
    the function's own parameter: the recipe's value or the default, whatever metadata there is. The function may be
    `async def`, and may carry the attributes `pointwise = False`, `overlaps_decoding = False`, `needs_image` and
    `usual_range`; one that does not name `images` needs none.

    Raises UserError for a function that takes no prompts, images or texts, and for unknown or mistyped parameters.
    """

    def __init__(
        self, function: Callable, params: Mapping[str, Any] | None = None, elsewhere: Sequence[str] = ()
    ) -> None:
        self._parameters = inspect.signature(function).parameters
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in self._parameters.values())
        if any(p.kind is p.POSITIONAL_ONLY for p in self._parameters.values()) or not (
            self._takes_all or {"prompts", "images", "texts"} & set(self._parameters)
        ):
            raise UserError(
                f"the function takes ({', '.join(self._parameters)}); a reward function takes its columns by keyword, "
                "as in def f(prompts, images, **columns)."
            )
        self._params = _bind(function, params or {}, elsewhere)
        named = [name for name, p in self._parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        own = {name for name in named if self._parameters[name].default is not inspect.Parameter.empty}
        self._own = (own | set(self._params)) - set(OWN_COLUMNS)
        self._needed = [name for name in named if name not in self._own and name not in OWN_COLUMNS]
        self._function = function
        self.pointwise = getattr(function, "pointwise", True)
        self.needs_image = getattr(function, "needs_image", self._takes_all or "images" in self._parameters)
        self.overlaps_decoding = getattr(function, "overlaps_decoding", True)
        self.usual_range = getattr(function, "usual_range", None)

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self._function)

    def check_columns(self, metadata: Iterable[Mapping[str, Any]]) -> None:
        """Of all samples that there will be. Raises UserError for a column that none of them has."""
        found = {key for row in metadata for key in row}
        known = [*OWN_COLUMNS, *sorted(map(str, found))]
        for name in self._needed:
            if name not in found:
                hint = did_you_mean(_ELSEWHERE.get(name, name), known)
                raise UserError(
                    f"the function takes the column {name!r}, which no prompt has; there are {', '.join(known)}.{hint}"
                )
        for name in sorted(self._own & found - set(self._params)):
            logger.warning(
                "reward %r has a parameter %r with a default, which metadata of that name does not replace; without "
                "the default it would be a column.",
                self.name,
                name,
            )

    def score(self, batch: RewardBatch) -> Sequence[float | None]:
        missing = {name: [None] * len(batch) for name in self._needed}
        columns = {**missing, **{name: column for name, column in batch.columns().items() if name not in self._own}}
        if not self._takes_all:
            columns = {name: column for name, column in columns.items() if name in self._parameters}
        return self._function(**{**columns, **self._params})


def _bind(function: Callable, given: Mapping[str, Any], elsewhere: Sequence[str]) -> dict[str, Any]:
    # Required parameters are columns, so a recipe is not asked for them: only what it gives is checked.
    required = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty and name not in given
    ]
    return bind_parameters(function, given, skip=[*OWN_COLUMNS, *required], elsewhere=elsewhere)
