"""A process that decodes and scores for training processes of its machine, and does nothing else."""

import signal
import socket
import weakref
from collections.abc import Mapping
from contextlib import nullcontext
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewards import RewardTable
from rl.distributed.process_roles import SIGNALS
from rl.policy.samples import Sample
from rl.scoring.completion_messages import completions_in, image_tensors, images_in
from rl.scoring.decoder_messages import receive, send
from rl.scoring.groups import compare_samples, comparing
from rl.scoring.pipeline import decode_and_score
from rl.scoring.scorer import ScoredList
from uniar.errors import RunError

if TYPE_CHECKING:
    from uniar.modeling_decoder import UniARVisualDecoder


class DecoderProcess:
    """Serves a number of training processes until each has said that it is done.

    Once they have connected, signals that ask a run to stop are passed over: they finish what they are at, and need
    scores for it.
    An error here is raised, so that this process ends with it; so does one whose training process has ended.
    """

    def __init__(self, path: Path, clients: int) -> None:
        """Opens the socket; training processes can connect and ask from now on."""
        self._asked_to_stop = False
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        self.clients = clients
        path.unlink(missing_ok=True)
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        # Also when this process fails before they have all connected.
        self._forget_path = weakref.finalize(self, path.unlink, missing_ok=True)
        self._listening.listen(clients)

    def serve(self, decoder: "UniARVisualDecoder", lists: Mapping[str, ScoredList]) -> None:
        """Answers until every training process is done. Raises RunError when one ends before."""
        # Connections are not closed on an error: the other side is to learn of it when this one has been reported.
        waiting: list[Any] = [self._listening]
        connected = done = 0
        while done < self.clients:
            if self._asked_to_stop and not connected:
                raise RunError("stopped before a training process had asked for scores.")
            for ready in wait(waiting, timeout=1.0):
                if ready is self._listening:
                    waiting.append(Connection(self._listening.accept()[0].detach()))
                    connected += 1
                    if connected == self.clients:
                        waiting.remove(self._listening)
                        self._close()
                elif not self._answer(ready, decoder, lists):
                    waiting.remove(ready)
                    ready.close()
                    done += 1

    def _close(self) -> None:
        """Nobody else can connect."""
        self._listening.close()
        self._forget_path()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked_to_stop = True

    def _answer(self, connection: Connection, decoder: "UniARVisualDecoder", lists: Mapping[str, ScoredList]) -> bool:
        """One question answered; False where there are no more."""
        try:
            notes, tensors = receive(connection)
        except ConnectionError as error:
            raise RunError("a training process has ended, so its decoding process ends too.") from error
        if notes["list"] is None:
            return False
        said, scores = _score(decoder, lists[notes["list"]], notes, tensors)
        try:
            send(connection, said, **scores)
        except ConnectionError as error:
            raise RunError("a training process has ended, so its decoding process ends too.") from error
        return True


def _score(
    decoder: "UniARVisualDecoder", scored: ScoredList, notes: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Notes and tensors of the answer to a question of rl/scoring/scorer.py."""
    if "comparing" in notes:
        return {"comparing": comparing(scored.rewards)}, {}
    samples = [Sample(scored.records[number], index) for number, index in tensors["places"].tolist()]
    completions = completions_in(notes["made"], tensors)
    if "compare" in notes:
        images = images_in(tensors, len(samples))
        return _answer_of(compare_samples(scored.rewards, samples, images, completions))
    images, table = decode_and_score(
        decoder,
        completions,
        samples,
        scored.settings,
        scored.rewards,
        nullcontext(),  # no reward here looks at the policy
        None,
        step=notes["step"],
        apart=notes["apart"],
    )
    said, scores = _answer_of(table)
    return said, {**scores, **image_tensors([image if n in notes["keep"] else None for n, image in enumerate(images)])}


def _answer_of(table: RewardTable) -> tuple[dict[str, Any], dict[str, Tensor]]:
    said = {"seconds": table.seconds, "details": table.details}
    return said, {"values": table.values, "failed": table.failed.to(torch.uint8)}
