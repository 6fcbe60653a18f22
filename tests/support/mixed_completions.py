"""Twelve samples that made different things, in three groups of four, scored on as many processes as there are: each
writes its share of the scores and images to share-RANK.json of the folder it is given."""

import hashlib
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image

from rewards import Reward, RewardSpec, RewardSuite
from rl.data.prompts import PromptRecord
from rl.policy.completion import Completion
from rl.policy.samples import DrawSettings, Sample
from rl.scoring.scorer import LocalScorer, ScoredList
from rl.scoring.straddling import begin_in_groups
from uniar.conversations import Drawing

SETTINGS = DrawSettings(64, 64, 1.0, None, 1.0, 1, 1.0, 4, 0)
SAMPLES = [Sample(PromptRecord(f"prompt {n // 4}", id=str(n // 4)), n % 4) for n in range(12)]


def mixed() -> list[Completion]:
    """The first group drew 2 × 2 tokens; the second 2 × 3, and wrote, but one of it only wrote; the third only
    wrote."""
    found = []
    for n in range(12):
        columns = (2, 3, 0)[n // 4] * (n != 5)
        shape = (2 * columns, 1, 4, 8)
        bits = torch.randint(0, 2, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
        texts = tuple(f"turn {turn} of {n} größer" for turn in range((n > 3) * (1 + n % 3)))
        found.append(Completion(Drawing(bits, 2) if columns else None, texts, "draw" if n < 4 else "mine"))
    return found


class Painter:
    """A decoder whose pixels are the bits, and what size it was asked for."""

    device = torch.device("cpu")
    bsq_encoder = SimpleNamespace(config=SimpleNamespace(pixels_per_token=32))

    def decode(self, bits, ar_height, ar_width, *arguments, **options):
        return [Image.new("L", (ar_width, ar_height), int(one.sum()) % 256).convert("RGB") for one in bits]


class Written(Reward):
    """The share of a sample in what its group wrote and drew; asked of all, drawn or not."""

    needs_image, pointwise = False, False

    def score(self, batch):
        assert len(batch) == 4
        assert len(set(batch.prompts)) == 1
        sizes = [
            len(" ".join(texts)) + (0 if image is None else sum(image.size) + image.getpixel((0, 0))[0])
            for texts, image in zip(batch.texts, batch.images, strict=True)
        ]
        return [{"score": size / sum(sizes), "why": f"{sizes}"} for size in sizes]


def suite() -> RewardSuite:
    return RewardSuite(
        [
            RewardSpec(Written),
            RewardSpec("diversity"),
            RewardSpec("diversity", name="bits", params={"of": "bits"}),
            RewardSpec("compressibility"),
        ]
    )


def contents(images, table) -> dict[str, list]:
    """Of each sample: its scores, what is said of it, what its image looks like."""
    return {
        "values": [[None if score != score else score for score in row] for row in table.values.tolist()],
        "said": table.details["Written"],
        "images": [image and hashlib.sha256(image.tobytes()).hexdigest() + str(image.size) for image in images],
    }


if __name__ == "__main__":
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    rank, share = accelerator.process_index, 12 // accelerator.num_processes
    own = slice(rank * share, (rank + 1) * share)
    scorer = LocalScorer(Painter(), ScoredList(suite(), SETTINGS), None)
    scores = begin_in_groups(
        scorer, accelerator, mixed()[own], SAMPLES[own], group=4, count=12, policy=lambda: nullcontext(None)
    )
    Path(sys.argv[1], f"share-{rank}.json").write_text(json.dumps(contents(*scores())))
