"""What samples made → images and scores: in this process, or in one that does nothing else (`decode.processes`)."""

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Client
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Required, TypedDict, Unpack

import torch
from PIL import Image
from torch import Tensor, nn

from rewards import RewardSuite, RewardTable
from rl.data.prompts import PromptRecord
from rl.policy.completion import Completion
from rl.policy.samples import DrawSettings, Sample
from rl.scoring.completion_messages import completion_message, image_tensors, images_in
from rl.scoring.decoder_messages import receive, send
from rl.scoring.groups import compare_samples, comparing
from rl.scoring.pipeline import decode_and_score
from uniar.decoder_sizes import DecoderSizes
from uniar.errors import RunError

if TYPE_CHECKING:
    from uniar.modeling_decoder import UniARVisualDecoder

CONNECT_SECONDS = 60.0
"""in which a decoding process opens its socket, which it does before it loads anything"""

Scores = Callable[[], tuple[list[Image.Image | None], RewardTable]]
"""Waits for B images, None where nothing was drawn or the image was not to be kept, and the scores."""

Policy = AbstractContextManager[nn.Module]

Phase = Callable[[str], AbstractContextManager]

Answer = tuple[dict[str, Any], dict[str, Tensor]]


class Wanted(TypedDict, total=False):
    """What a scorer is told of samples besides what they made."""

    policy: Required[Policy]
    """for rewards that look at the model"""
    step: int
    """of the run, for the decoder's noise; 0 by default"""
    keep: Collection[int]
    """the samples, by place, whose images are wanted; none by default"""
    apart: Collection[int]
    """those whose group is not whole here: rewards that compare samples leave them out; their images are wanted too"""
    phase: Phase
    """a context for the time that is spent on it in this process"""


class Scorer(Protocol):
    """Decodes and scores samples with the rewards of one list of the recipe."""

    rewards: RewardSuite
    local: bool
    """whether this process decodes, once the scores are asked for"""

    @property
    def sizes(self) -> DecoderSizes:
        """Of what its decoder draws."""

    def begin(self, completions: Sequence[Completion], samples: Sequence[Sample], **wanted: Unpack[Wanted]) -> Scores:
        """Begins with what B samples made."""

    @property
    def comparing(self) -> list[str]:
        """The rewards that compare the samples of a group."""

    def compare(
        self,
        completions: Sequence[Completion],
        samples: Sequence[Sample],
        images: Sequence[Image.Image | None],
        policy: Policy,
    ) -> RewardTable:
        """The scores of these rewards for samples in whole groups, or for none. Where the policy is sharded, all ranks
        call it."""


@dataclass(frozen=True)
class ScoredList:
    """What samples of one list of the recipe's, rewards or eval_rewards, are scored with."""

    rewards: RewardSuite
    settings: DrawSettings
    records: Sequence[PromptRecord] = ()
    """all prompts that they may be of; for those who are told numbers"""


class LocalScorer:
    """In this process, when the scores are asked for."""

    local = True

    def __init__(self, decoder: "UniARVisualDecoder", scored: ScoredList, processor: Any) -> None:
        self.decoder, self.rewards, self.settings, self.processor = decoder, scored.rewards, scored.settings, processor

    def begin(self, completions: Sequence[Completion], samples: Sequence[Sample], **wanted: Unpack[Wanted]) -> Scores:
        wanted.pop("keep", None)  # all are
        given = (self.decoder, completions, samples, self.settings, self.rewards)
        return partial(decode_and_score, *given, processor=self.processor, **wanted)

    @property
    def sizes(self) -> DecoderSizes:
        return self.decoder.sizes

    @property
    def comparing(self) -> list[str]:
        return comparing(self.rewards)

    def compare(
        self,
        completions: Sequence[Completion],
        samples: Sequence[Sample],
        images: Sequence[Image.Image | None],
        policy: Policy,
    ) -> RewardTable:
        with self.rewards.on_device(), self.rewards.bound(policy, self.processor):
            return compare_samples(self.rewards, samples, images, completions)


class DecoderConnection:
    """To the decoding process that serves this one."""

    def __init__(self, path: Path) -> None:
        self._turn = threading.Lock()
        deadline = time.monotonic() + CONNECT_SECONDS
        while True:
            try:
                self._connection = Client(os.fspath(path), family="AF_UNIX")
                return
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline:
                    raise RunError(f"no decoding process has opened {path} in {CONNECT_SECONDS:g} s.") from None
                time.sleep(0.1)

    def ask(self, notes: dict[str, Any], **tensors: Tensor) -> "Future[Answer]":
        """Sends a question; the answer's notes and tensors, once they are there. Raises, when they are asked for,
        RunError if the decoding process has ended.

        A thread of its own sends and reads: neither side ever waits for this process to finish what it is at, which may
        need the other training processes, and those the decoding process.
        """
        answer: Future[Answer] = Future()

        def exchange() -> None:
            try:
                with self._turn, _connection_errors_as_run_errors():
                    send(self._connection, notes, **tensors)
                    answer.set_result(receive(self._connection))
            except BaseException as error:
                answer.set_exception(error)

        # As a daemon it does not keep a process alive that an error ends.
        threading.Thread(target=exchange, name="scores", daemon=True).start()
        return answer

    def close(self) -> None:
        """Says that nothing more will be asked. Raises RunError when the decoding process has ended."""
        with self._turn, _connection_errors_as_run_errors():
            send(self._connection, {"list": None})
        self._connection.close()


class RemoteScorer:
    """In a decoding process, while this one goes on until it asks for the scores."""

    local = False

    def __init__(self, connection: DecoderConnection, key: str, scored: ScoredList, sizes: DecoderSizes) -> None:
        """key: what the other process calls the same list."""
        self.connection, self.key, self.rewards, self.sizes = connection, key, scored.rewards, sizes
        self._numbers = {record.id: number for number, record in enumerate(scored.records)}
        self._comparing: list[str] | None = None

    def begin(self, completions: Sequence[Completion], samples: Sequence[Sample], **wanted: Unpack[Wanted]) -> Scores:
        apart, step = sorted(wanted.get("apart", ())), wanted.get("step", 0)
        keep = sorted({*wanted.get("keep", ()), *apart})
        made, drawings = completion_message(completions)
        notes = {"list": self.key, "step": step, "made": made, "keep": keep, "apart": apart}
        answer = self.connection.ask(notes, places=self._places(samples), **drawings)
        return partial(self._finish, answer, list(samples), wanted.get("phase", nullcontext))

    def _finish(
        self, answer: "Future[Answer]", samples: Sequence[Sample], phase: Phase
    ) -> tuple[list[Image.Image | None], RewardTable]:
        with phase("decode"):
            notes, tensors = answer.result()
        return images_in(tensors, len(samples)), self._table(samples, notes, tensors)

    def _places(self, samples: Sequence[Sample]) -> Tensor:
        return torch.tensor([[self._numbers[sample.record.id], sample.index] for sample in samples])

    def _table(self, samples: Sequence[Sample], notes: dict[str, Any], tensors: dict[str, Tensor]) -> RewardTable:
        weights = self.rewards.weights_for([sample.record.task for sample in samples])
        values, failed = tensors["values"], tensors["failed"].bool()
        return RewardTable(self.rewards.names, values, weights, failed, notes["seconds"], notes["details"])

    @property
    def comparing(self) -> list[str]:
        if self._comparing is None:  # asked, because a served reward knows it only once it is loaded
            self._comparing = self.connection.ask({"list": self.key, "comparing": True}).result()[0]["comparing"]
        return self._comparing

    def compare(
        self,
        completions: Sequence[Completion],
        samples: Sequence[Sample],
        images: Sequence[Image.Image | None],
        policy: Policy,
    ) -> RewardTable:
        if not samples:
            return RewardTable.empty(self.rewards.names, self.rewards.weights_for([]))
        made, drawings = completion_message(completions)
        notes = {"list": self.key, "made": made, "compare": True}
        answer = self.connection.ask(notes, places=self._places(samples), **drawings, **image_tensors(images))
        return self._table(samples, *answer.result())


@contextmanager
def _connection_errors_as_run_errors() -> Iterator[None]:
    """A closed connection becomes the sentence that says what has happened."""
    try:
        yield
    except ConnectionError as error:
        raise RunError("the decoding process of this one has ended; what went wrong is said above.") from error
