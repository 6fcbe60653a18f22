"""How the steps of a batch are run: operator by operator, compiled, or as CUDA graphs."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, get_args
from weakref import WeakKeyDictionary

import torch

from uniar.compiling import compile_options, compiling
from uniar.engine import Engine
from uniar.engine.cached_steps import CachedSteps
from uniar.engine.cuda_graphs import CudaCapture
from uniar.engine.layers import run_layer
from uniar.errors import UserError
from uniar.reading.files import reason_of

logger = logging.getLogger(__name__)
Step = Callable[[int], None]
"""takes how many slots attention reads"""

GPU = "cuda"
STRIDE = 64
"""Attention reads this many slots more at a time, so that the shapes of a rollout stay few."""
CHECKED = 4
"""Tokens that `auto` compares: a step that warms up, one that is captured, and two that are replayed."""


def run(steps: CachedSteps, engine: Engine, drawn: Callable[[], bool]) -> None:
    """Samples all tokens; `drawn` is called after each, and says whether the others are not needed.

    eager and graph run the same kernels. Compiled layers, of which CUDA graphs are made where the model is on a GPU,
    round otherwise in the last digit. auto is graph on a GPU, once its first tokens have had eager's bits, else eager.

    Raises RunError where `engine` is compiled and the layers do not compile.
    """
    with _stepping(steps, engine) as (step, done):
        for token in range(len(steps.drawn) - 1):
            if token >= done:
                step(filled(steps, token))
            if drawn():
                return
        steps.sample()
        drawn()


def check_engine(engine: Engine, device: torch.device) -> None:
    """Raises UserError for an engine that is none, or that this device has not."""
    if engine not in get_args(Engine):
        raise UserError(f"the rollout engine is {engine!r}; it must be one of {', '.join(get_args(Engine))}.")
    if engine == "graph" and device.type != GPU:
        raise UserError(
            f"the rollout engine graph needs a CUDA GPU and the model is on {device}; take auto, eager or compiled "
            "(rollout.engine of a recipe, --engine)."
        )


def filled(steps: CachedSteps, token: int) -> int:
    """Slots that attention reads when this token is fed: those in use, in strides."""
    used = steps.prefix_width + token + 1
    return min(-(-used // STRIDE) * STRIDE, len(steps.slots))


@contextmanager
def _stepping(steps: CachedSteps, engine: Engine) -> Iterator[tuple[Step, int]]:
    """The step, and how many tokens are drawn already."""
    device, step = steps.hidden.device, steps.step
    if engine == "compiled":
        step = partial(_compiled_step, steps)
    if engine == "eager" or device.type != GPU:
        yield step, 0
        return
    with CudaCapture(device) as capture:
        graphs = Graphs(step, capture)
        yield checked(steps, graphs) if engine == "auto" else (graphs, 0)


class Graphs:
    """A step, run as it is the first time that it has a shape, captured the second time, and replayed from then on."""

    def __init__(self, step: Step, capture: Callable[[Callable[[], None]], Callable[[], None]]) -> None:
        """capture: notes what a function does, without doing it, and returns what does it."""
        self.step, self.capture = step, capture
        self.replays: dict[int, Callable[[], None] | None] = {}

    def __call__(self, slots: int) -> None:
        if slots not in self.replays:
            self.replays[slots] = None
            self.step(slots)
            return
        replay = self.replays[slots] = self.replays[slots] or self.capture(partial(self.step, slots))
        replay()


_found_right: WeakKeyDictionary[object, dict[tuple[Any, ...], bool]] = WeakKeyDictionary()


def checked(steps: CachedSteps, graphs: Step) -> tuple[Step, int]:
    """`graphs`, if it draws the first tokens as the eager step does and raises nothing, else the eager step with a
    warning; and how many tokens are drawn. What was found of a model and shape is not looked for again. A graph that
    cannot be captured later on gives way to the eager step too."""
    known = _found_right.setdefault(steps.model, {})
    shape = *steps.shape, torch.is_autocast_enabled(steps.hidden.device.type)
    if False in known.values() or len(steps.drawn) <= CHECKED:  # too few to gain by graphs
        return steps.step, 0

    def give_way(reason: str) -> None:
        known[shape] = False
        logger.warning("The rollout engine is eager from here on, as its CUDA graphs do not serve: %s.", reason)

    def step(slots: int) -> None:
        if known[shape]:
            try:
                graphs(slots)
                return
            except Exception as error:  # a capture takes no step, so the eager one comes in its place
                give_way(reason_of(error))
        steps.step(slots)

    if known.get(shape):
        return step, 0
    start = steps.hidden.clone()

    def first(taken: Step) -> torch.Tensor:
        steps.rewind(start)
        for token in range(CHECKED):
            taken(filled(steps, token))
        return steps.drawn[:CHECKED].clone()

    expected = first(steps.step)
    try:
        found = first(graphs)
        differ = int((found != expected).sum())
        reason = f"{differ} of {expected.numel()} values differ" if differ else None
    except Exception as error:  # whatever a driver, a capture or an operator may say
        reason = reason_of(error)
    if reason is None:
        known[shape] = True
        return step, CHECKED
    give_way(reason)
    steps.rewind(start)
    return steps.step, 0


@cache
def _compiled(kind: str, steps: type[CachedSteps]) -> tuple[Callable[..., object], Callable[..., torch.Tensor]]:
    """`begin` of the steps and a layer, compiled for a kind of device: all layers share what one was compiled to."""
    options = compile_options(kind)
    return (
        torch.compile(steps.begin, fullgraph=True, options=options),
        torch.compile(run_layer, fullgraph=True, options=options),
    )


def _compiled_step(steps: CachedSteps, slots: int) -> None:
    begin, one = _compiled(steps.hidden.device.type, type(steps))
    with compiling("the layers", "rollout.engine eager or auto; --engine"):
        steps.step(slots, begin, one)
