"""A plain function as a reward, in TRL's style: `def f(prompts, images, **columns) -> list[float | None]`."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewards.base import Reward, RewardBatch
from rewards.parameters import bind_parameters
from uniar.errors import UserError

OWN_COLUMNS = ("prompts", "images", "task", "metadata", "bits")


class FunctionReward(Reward):
    """Calls a function by keyword with the columns of `RewardBatch.columns` that its signature names (all of them if it
    takes `**columns`). A named column that no sample has arrives as the parameter's default, else as a list of None.
    The recipe's parameters are handed over as they are. The function may be `async def`, and may carry the attributes
    `pointwise = False`, `beside_decoding = False` and `usual_range`.

    Raises UserError for a function that takes neither prompts nor images, and for unknown or mistyped parameters.
    """

    def __init__(self, function: Callable, params: Mapping[str, Any] | None = None):
        self._parameters = inspect.signature(function).parameters
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in self._parameters.values())
        if any(p.kind is p.POSITIONAL_ONLY for p in self._parameters.values()) or not (
            self._takes_all or {"prompts", "images"} & set(self._parameters)
        ):
            raise UserError(
                f"the function takes ({', '.join(self._parameters)}); a reward function takes its columns by keyword, "
                "as in def f(prompts, images, **columns)."
            )
        self._params = _bind(function, params or {})
        self._function = function
        self.pointwise = getattr(function, "pointwise", True)
        self.beside_decoding = getattr(function, "beside_decoding", True)
        self.usual_range = getattr(function, "usual_range", None)

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self._function)

    def score(self, batch: RewardBatch) -> Sequence[float | None]:
        columns = batch.columns()
        if not self._takes_all:
            columns = {name: column for name, column in columns.items() if name in self._parameters}
        for name, parameter in self._parameters.items():
            needed = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
            if needed and name not in columns and name not in self._params:
                columns[name] = [None] * len(batch)
        return self._function(**{**columns, **self._params})


def _bind(function: Callable, given: Mapping[str, Any]) -> dict[str, Any]:
    # Required parameters are columns, so a recipe is not asked for them: only what it gives is checked.
    required = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty and name not in given
    ]
    return bind_parameters(function, given, skip=[*OWN_COLUMNS, *required])
