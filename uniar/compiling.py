"""torch.compile: how it is asked, how many forms it may make, and the sentence where it fails."""

from collections.abc import Iterator
from contextlib import contextmanager

from uniar.errors import RunError
from uniar.reading.files import reason_of

FORMS = 64
"""Compiled forms of a function that may exist: torch's own limit, 8, is soon reached by batches of several sizes."""


def compile_options(kind: str) -> dict[str, bool] | None:
    """For a kind of device: on a CPU the code is C++ throughout, else Python calls the kernels, which costs more."""
    return {"cpp_wrapper": True} if kind == "cpu" else None


@contextmanager
def compiling(what: str, instead: str) -> Iterator[None]:
    """What is called inside is compiled when it has not been. Raises RunError where that fails, of `what` and with the
    advice to take something else `instead`."""
    from torch._dynamo import config  # a second of imports, which only this needs
    from torch._dynamo.exc import TorchDynamoException

    try:
        with config.patch(recompile_limit=FORMS):
            yield
    except TorchDynamoException as error:
        raise RunError(f"{what} do not compile: {reason_of(error)} (take {instead}).") from error
