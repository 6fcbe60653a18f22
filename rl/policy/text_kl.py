"""The text-KL term: what the policy would answer is held to what the reference would, while drawing is trained.

Teacher-forced on the right answers, the exact KL divergence over the vocabulary between the next-token distributions of
policy and reference, KL(π ‖ ref), at each position of an answer, its end included; averaged over the positions of an
update's questions.

Shapes: B questions · A answer positions · V vocabulary · Q questions per update.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from rl.data.questions import QuestionRecord
from uniar.answering import Exchange, answer_ids, answer_logits, encode_exchange
from uniar.seeds import seed_of

if TYPE_CHECKING:
    from uniar.configuration_uniar import UniARConfig


def categorical_kl(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """(…, V) and (…, V) → (…) KL(softmax(logits) ‖ softmax(reference_logits)) in nats, with gradient to the first."""
    log_p, log_q = logits.log_softmax(-1), reference_logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


class TextKL:
    """Chooses an update's questions, the same whatever processes and micro-batches share them, and takes the term.

    An update's Q questions are the next Q of an endless row of epochs, each in an order of its own (seed, epoch). They
    are dealt to the processes in turn, and within a process to its micro-batches. Every process runs the model equally
    often: one that has nothing to ask in a micro-batch where others do asks something that counts nothing.
    """

    def __init__(
        self,
        questions: Sequence[QuestionRecord],
        processor: Any,
        config: "UniARConfig",
        *,
        beta: float,
        questions_per_update: int,
        seed: int,
    ) -> None:
        self.questions, self.processor, self.config = list(questions), processor, config
        self.beta, self.questions_per_update, self.seed = beta, questions_per_update, seed
        self.positions = [len(answer_ids(processor, record.answer)) for record in self.questions]
        self.update: int | None = None
        """whose questions are being asked, counted from 0"""
        self._parts: list[_Part] = []

    def numbers(self, update: int) -> list[int]:
        """The Q questions of an update, counted from 0."""
        first, count = update * self.questions_per_update, len(self.questions)
        orders: dict[int, list[int]] = {}
        chosen = []
        for place in range(first, first + self.questions_per_update):
            epoch = place // count
            if epoch not in orders:
                generator = torch.Generator().manual_seed(seed_of("text KL", self.seed, epoch))
                orders[epoch] = torch.randperm(count, generator=generator).tolist()
            chosen.append(orders[epoch][place % count])
        return chosen

    def shares(self, update: int, process: int, processes: int, micro_batches: int) -> list[list[int]]:
        """The questions of one process by micro-batch, for the micro-batches in which any process has some."""
        numbers = self.numbers(update)
        rounds = -(-len(numbers) // processes)
        own = numbers[process::processes]
        return [own[micro::micro_batches] for micro in range(min(rounds, micro_batches))]

    def begin(
        self,
        update: int,
        reference: Callable[..., Any],
        device: torch.device,
        *,
        process: int = 0,
        processes: int = 1,
        micro_batches: int = 1,
    ) -> None:
        """Before an update's first micro-batch: encodes this process's questions and asks the reference."""
        numbers = self.numbers(update)
        self.update, self._parts = update, []
        # Gradients are averaged over processes and micro-batches; the positions of all of them count alike.
        weight = processes * micro_batches / sum(self.positions[number] for number in numbers)
        for share in self.shares(update, process, processes, micro_batches):
            records = [self.questions[number] for number in share or numbers[:1]]
            exchange = encode_exchange(
                self.processor,
                self.config,
                [record.load_image() for record in records],
                [record.question for record in records],
                [record.answer for record in records],
            ).to(device)
            with torch.no_grad():
                expected = answer_logits(reference, exchange)[exchange.answer_mask]
            self._parts.append(_Part(exchange, expected, weight if share else 0.0))

    def divergence(self, model: Callable[..., Any]) -> Tensor | None:
        """The next micro-batch's part of the divergence, with gradient: what is averaged over processes and
        micro-batches to the mean over the positions. None in a micro-batch where no process asks anything."""
        if not self._parts:
            return None
        part = self._parts.pop(0)
        logits = answer_logits(model, part.exchange)[part.exchange.answer_mask]
        return categorical_kl(logits, part.reference_logits).sum() * part.weight


class _Part(NamedTuple):
    """What one process asks in one micro-batch."""

    exchange: Exchange
    reference_logits: Tensor
    """(positions, V)"""
    weight: float
