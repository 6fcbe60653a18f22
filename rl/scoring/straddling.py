"""Groups that straddle processes, for rewards that compare samples: the process with a group's first sample scores it.

The samples of all processes are numbered: number n is on process n // share, and groups are consecutive numbers. That
process gets what the other samples made, and all get the scores. The same scores come of it on any number of
processes.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from PIL import Image
from torch import nn

from rewards import RewardTable
from rl.policy.completion import Completion
from rl.policy.samples import Sample
from rl.scoring.completion_messages import completion_message, completions_in, image_tensors, images_in
from rl.scoring.decoder_messages import packed, unpacked
from rl.scoring.scorer import Scorer, Scores
from uniar.errors import RunError

if TYPE_CHECKING:
    from accelerate import Accelerator

Made = tuple[Image.Image | None, Completion]


def begin_in_groups(
    scorer: Scorer,
    accelerator: "Accelerator",
    completions: Sequence[Completion],
    samples: Sequence[Sample],
    *,
    group: int,
    count: int,
    policy: Callable[[], AbstractContextManager[nn.Module]],
    **options: Any,
) -> Scores:
    """`Scorer.begin` for this rank's share of `count` samples in groups of `group`, of which some may straddle ranks.
    All ranks call it, and what it returns. What a share has beyond `count` is compared by no reward.

    Raises RunError, on all ranks, where they do not have the same rewards that compare samples."""
    comparing = _same_everywhere(scorer.comparing)
    share = len(samples)
    first = accelerator.process_index * share
    straddling = [start for start in range(0, count, group) if start // share != (start + group - 1) // share]
    if not straddling or not comparing:
        apart = range(max(0, count - first), share) if comparing else ()
        return scorer.begin(completions, samples, policy=policy(), apart=apart, **options)
    apart = [n - first for n in range(first, first + share) if n >= count or n // group * group in straddling]
    scores = scorer.begin(completions, samples, policy=policy(), apart=apart, **options)

    def finish() -> tuple[list[Image.Image | None], RewardTable]:
        images, table = scores()
        whole: dict[int, Made] = {}
        for start in straddling:
            for number in range(start, start + group):
                if (found := _moved(number, start // share, share, images, completions, accelerator)) is not None:
                    whole[number] = found
        drawn = [Sample(samples[n // group * group - first].record, n % group) for n in whole]
        pictures, made = [image for image, _ in whole.values()], [one for _, one in whole.values()]
        compared = scorer.compare(made, drawn, pictures, policy=policy())
        for numbers, elsewhere in gather_object([(list(whole), compared)]):
            own = {row: n - first for row, n in enumerate(numbers) if first <= n < first + share}
            if own:
                table = table.filled(elsewhere.rows(own), comparing, list(own.values()))
        return images, table

    return finish


def _same_everywhere(comparing: list[str]) -> list[str]:
    """What this rank and all others say, so that none waits for a sample that is never sent: whether a served reward
    compares samples each rank has from the servers that it could reach."""
    said = gather_object([comparing])
    if any(names != comparing for names in said):
        each = "; ".join(f"process {rank}: {', '.join(names) or 'none'}" for rank, names in enumerate(said))
        raise RunError(
            f"the processes do not agree which rewards compare the samples of a prompt ({each}); the servers of a "
            "reward must all serve the same."
        )
    return comparing


def _moved(
    number: int,
    owner: int,
    share: int,
    images: Sequence[Image.Image | None],
    completions: Sequence[Completion],
    accelerator: "Accelerator",
) -> Made | None:
    """What a sample made and its image, on the rank that is to have them; None on the others. The order of sending and
    receiving is the same on all ranks."""
    rank, holder, device = accelerator.process_index, number // share, accelerator.device
    place = number % share
    if rank == holder == owner:
        return images[place], completions[place]
    if rank == holder:
        notes, drawing = completion_message([completions[place]])
        message = packed(notes, drawing | image_tensors([images[place]]))
        torch.distributed.send(torch.tensor([len(message)], device=device), owner)
        torch.distributed.send(torch.frombuffer(bytearray(message), dtype=torch.uint8).to(device), owner)
    if rank != owner:
        return None
    length = torch.zeros(1, dtype=torch.int64, device=device)
    torch.distributed.recv(length, holder)
    content = torch.empty(int(length), dtype=torch.uint8, device=device)
    torch.distributed.recv(content, holder)
    notes, tensors = unpacked(content.cpu().numpy().tobytes())
    return images_in(tensors, 1)[0], completions_in(notes, tensors)[0]
