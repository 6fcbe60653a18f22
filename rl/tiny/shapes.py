"""`rl.tiny.shapes:Shapes`: are the shapes that the prompt names there, as many, in those colours and places?"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rewards.contract.base import Reward, RewardBatch
from rewards.geneval.clauses import Detection, Verdict, partial_credit, strict_credit
from rewards.geneval.request import Request, read_request
from rl.tiny.detector import LIKENESS, Sighting, detect
from rl.tiny.world import COLORS, SHAPES
from uniar.errors import UserError


class Shapes(Reward):
    """What an image of UniAR-Tiny's world has of the shapes that the sample's metadata asks for: `tag`, `include` and
    `exclude`, as in GenEval's files (arXiv:2310.11513). A sample with neither `include` nor `exclude` has no score.

    Args:
        credit: "strict" is GenEval's own 1 or 0, for at least as many shapes as asked for; "partial" is the mean over
            what is asked for, a count worth 1 − |n − m| / n, as Flow-GRPO trains with.
        floor: the least that a count is worth under partial credit; null for no bound: 4 circles where one is asked for
            give −2.
        likeness: from which likeness to a shape, 0 to 1, a part of the image counts as one.
        position_threshold: which part of two shapes' extents their offset must exceed before it is a direction.

    Raises UserError for settings out of range.
    """

    usual_range = (0.0, 1.0)

    def __init__(
        self,
        credit: Literal["strict", "partial"] = "strict",
        floor: float | None = None,
        likeness: float = LIKENESS,
        position_threshold: float = 0.1,
    ):
        if floor is not None and (credit == "strict" or floor > 1):
            wanted = "at most 1 is needed" if credit == "partial" else "only 'credit: partial' has one"
            raise UserError(f"floor is {floor}; {wanted}.")
        if not 0 <= likeness < 1:
            raise UserError(f"likeness is {likeness}; at least 0 and less than 1 is needed.")
        if position_threshold < 0:
            raise UserError(f"position_threshold is {position_threshold}; it cannot be negative.")
        self.credit, self.floor = credit, floor
        self.likeness, self.position_threshold = likeness, position_threshold

    def check_sample(self, prompt: str, metadata: Mapping[str, Any]) -> None:
        read_request(metadata, SHAPES, tuple(COLORS))

    def score(self, batch: RewardBatch) -> list[dict[str, Any] | UserError | None]:
        """Mappings with `score`, `why` and what was `found`; None where nothing is asked for, an error for metadata
        that is not valid."""
        results: list[dict[str, Any] | UserError | None] = []
        for image, metadata in zip(batch.images, batch.metadata, strict=True):
            try:
                request = read_request(metadata, SHAPES, tuple(COLORS))
            except UserError as error:
                results.append(error)
                continue
            if request is None:
                results.append(None)
                continue
            sightings = detect(image, self.likeness)
            verdict = self._verdict(request, sightings)
            why = "; ".join(verdict.why) or "all there"
            results.append({"score": verdict.score, "why": why, "found": listed(sightings)})
        return results

    def _verdict(self, request: Request, sightings: Sequence[Sighting]) -> Verdict:
        found = found_shapes(sightings)
        if self.credit == "partial":
            return partial_credit(request, found, self.position_threshold, self.floor)
        return strict_credit(request, found, self.position_threshold)


def found_shapes(sightings: Sequence[Sighting]) -> Mapping[str, list[Detection]]:
    """What GenEval's clauses look at: the sightings by shape, unclear ones left out."""
    return {shape: [Detection(each.box, each.color) for each in sightings if each.shape == shape] for shape in SHAPES}


def listed(sightings: Sequence[Sighting]) -> str:
    """ "red circle at 16, 32; blue square at 48, 32"; "nothing"."""
    return "; ".join(f"{each.color} {each.shape} at {each.x:.0f}, {each.y:.0f}" for each in sightings) or "nothing"
