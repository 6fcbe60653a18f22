"""From `rollout.episodes` of a recipe to episodes."""

import inspect
import typing
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from rl.episodes.answer import answer
from rl.episodes.draw import draw
from rl.episodes.draw_check_redraw import draw_check_redraw
from rl.episodes.requests import Episode, TurnKind
from rl.episodes.think_draw import think_draw
from uniar.errors import UserError, did_you_mean
from uniar.reading.plugins import load_plugin

EPISODES: dict[str, Episode] = {
    "draw": draw,
    "answer": answer,
    "think_draw": think_draw,
    "draw_check_redraw": draw_check_redraw,
}
DEFAULT = "default"
"""the task of prompts whose own is not among `rollout.episodes`"""


class Episodes:
    """Which episode the prompts of a task play. A plug-in is loaded when it is first asked for."""

    def __init__(self, names: Mapping[str, str] | None = None, folder: Path | None = None) -> None:
        """names: task → a name of EPISODES or a plug-in. folder: the recipe's, where plug-in files may lie."""
        self.names, self._folder = {DEFAULT: "draw"} | dict(names or {}), folder
        self._loaded: dict[str, Episode] = {}

    def name_of(self, task: str | None) -> str:
        return self.names.get(task or DEFAULT, self.names[DEFAULT])

    def of(self, task: str | None) -> Episode:
        """Raises UserError for an unknown name, and for a plug-in that is not a generator function of a record."""
        name = self.name_of(task)
        if name not in self._loaded:
            self._loaded[name] = episode_named(name, self._folder)
        return self._loaded[name]

    def turns(self, tasks: Iterable[str | None]) -> set[TurnKind]:
        """The kinds of turns that prompts of these tasks may take. Raises UserError as `of` does."""
        return set(self.most_turns(tasks))

    def most_turns(self, tasks: Iterable[str | None]) -> Counter[TurnKind]:
        """How many of each kind a sample takes at most, as its episode says, or else one. Raises UserError as `of`
        does."""
        kinds, most = typing.get_args(TurnKind), Counter[TurnKind]()
        for task in set(tasks):
            most |= Counter(getattr(self.of(task), "turns", kinds))
        return most


def episode_named(name: str, folder: Path | None = None) -> Episode:
    """Raises UserError as `Episodes.of` does."""
    if name in EPISODES:
        return EPISODES[name]
    if ":" not in name:
        raise UserError(
            f"{name!r} is not an episode; expected one of {', '.join(EPISODES)} or path/to/file.py:function."
            f"{did_you_mean(name, EPISODES)}"
        )
    found = load_plugin(name, folder)
    if not inspect.isgeneratorfunction(found):
        raise UserError(f"the episode {name} is not a generator function; it must yield Draw or Write.")
    try:
        inspect.signature(found).bind(None)
    except TypeError as error:
        raise UserError(f"the episode {name} cannot be called with a prompt record: {error}.") from error
    kinds = typing.get_args(TurnKind)
    if not set(getattr(found, "turns", kinds)) <= set(kinds):
        raise UserError(f"the episode {name} has the turns {found.turns!r}; they are {' and '.join(kinds)}.")
    return found
