"""`geneval`: are the objects that the prompt names there, as many, in those colours and places?

Ghosh et al. 2023 (arXiv:2310.11513), with transformers' Mask2Former in place of mmdet's.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from PIL import Image

from rewards.contract.base import RewardBatch
from rewards.geneval.clauses import Detection, Verdict, kept, need_color, partial_credit, strict_credit
from rewards.geneval.colors import ColorClassifier, cropped
from rewards.geneval.detection import Detector, Instance
from rewards.geneval.request import OBJECT_NAMES, Request, read_request
from rewards.models.model_reward import ModelReward, Precision
from rewards.models.open_clip_model import OpenClip
from uniar.errors import UserError


class GenEval(ModelReward):
    """What an image has of the objects that the sample's metadata asks for: `tag`, `include` and `exclude`, as in
    GenEval's own files. A sample with neither `include` nor `exclude` has no score.

    Objects are found by a Mask2Former, with mmdet's sizes and post-processing; their colours by CLIP.

    Args:
        credit: "strict" is GenEval's own 1 or 0, for at least as many objects as asked for; "partial" is the mean over
            what is asked for, a count worth 1 − |n − m| / n, as Flow-GRPO trains with.
        floor: the least that a count is worth under partial credit; null for no bound, as published: 16 dogs where one
            is asked for give −14.
        detector: hub id or local folder of a Mask2Former for COCO's 80 classes, as transformers saves it.
        clip_model: an open_clip architecture, "hf-hub:owner/name" or "local-dir:path", for the colours.
        clip_weights: an open_clip tag or a local weight file; null for "hf-hub:" and "local-dir:".
        clip_weights_like: for a local file of a named architecture, the tag it equals in preprocessing and activation.
        threshold: an object counts if it is surer than this.
        counting_threshold: the same, where the tag is "counting".
        max_objects: of each class, the surest that count.
        position_threshold: which part of two objects' extents their offset must exceed before it is a direction.
        short_side, long_side: images are scaled, their ratio kept, as large as fits both before detection.
        batch_size: images, and crops, that go through the models at a time.
        device: where it runs; null follows the trainer (a GPU if there is one).
        dtype: of weights and activations.

    Raises UserError for settings out of range, and for weights that are missing or of another model, when loading.
    """

    usual_range = (0.0, 1.0)

    def __init__(
        self,
        credit: Literal["strict", "partial"] = "strict",
        floor: float | None = None,
        detector: str = "facebook/mask2former-swin-small-coco-instance",
        clip_model: str = "ViT-L-14",
        clip_weights: str | None = "openai",
        clip_weights_like: str | None = None,
        threshold: float = 0.3,
        counting_threshold: float = 0.9,
        max_objects: int = 16,
        position_threshold: float = 0.1,
        short_side: int = 800,
        long_side: int = 1333,
        batch_size: int = 4,
        device: str | None = None,
        dtype: Precision = "float32",
    ):
        super().__init__(batch_size, device, dtype)
        for name, value in (("threshold", threshold), ("counting_threshold", counting_threshold)):
            if not 0 <= value < 1:
                raise UserError(f"{name} is {value}; at least 0 and less than 1 is needed.")
        if position_threshold < 0:
            raise UserError(f"position_threshold is {position_threshold}; it cannot be negative.")
        if floor is not None and (credit == "strict" or floor > 1):
            wanted = "at most 1 is needed" if credit == "partial" else "only 'credit: partial' has one"
            raise UserError(f"floor is {floor}; {wanted}.")
        if max_objects < 1:
            raise UserError(f"max_objects is {max_objects}; at least 1 is needed.")
        if not 32 <= short_side <= long_side:
            raise UserError(
                f"short_side is {short_side} and long_side {long_side}; 32 ≤ short_side ≤ long_side is needed."
            )
        self.credit, self.floor, self.position_threshold = credit, floor, position_threshold
        self.detector, self.short_side, self.long_side = detector, short_side, long_side
        self.clip = OpenClip(clip_model, clip_weights, clip_weights_like)
        self.threshold, self.counting_threshold, self.max_objects = threshold, counting_threshold, max_objects

    def build(self) -> torch.nn.Module:
        detector = Detector(self.detector, OBJECT_NAMES, self.short_side, self.long_side)
        return torch.nn.ModuleDict({"detector": detector, "colors": ColorClassifier(self.clip)})

    def check_sample(self, prompt: str, metadata: Mapping[str, Any]) -> None:
        read_request(metadata)

    def score(self, batch: RewardBatch) -> list[dict[str, Any] | UserError | None]:
        """Mappings with `score` and `why`; None where nothing is asked for, an error for metadata that is not valid."""
        self.load()
        requests = [_request(metadata) for metadata in batch.metadata]
        rows = [row for row, request in enumerate(requests) if isinstance(request, Request)]
        found = self._find(batch.images, requests, rows)
        colors = self._colors(batch.images, requests, found)
        results: list[Any] = list(requests)
        for row, instances in found.items():
            verdict = self._verdict(
                requests[row],
                {
                    name: [Detection(each.box, colors.get((row, name, place))) for place, each in enumerate(members)]
                    for name, members in instances.items()
                },
            )
            results[row] = {"score": verdict.score, "why": "; ".join(verdict.why) or "all there"}
        return results

    def _find(self, images: list[Image.Image], requests: list, rows: list[int]) -> dict[int, dict[str, list[Instance]]]:
        """Of each row the instances that count, by class, the surest first."""
        found = {}
        for size in dict.fromkeys(images[row].size for row in rows):  # one size a batch: none is padded for another
            for part in self.batches([row for row in rows if images[row].size == size]):
                thresholds = [
                    self.counting_threshold if requests[row].tag == "counting" else self.threshold for row in part
                ]
                detected = self._model["detector"]([images[row] for row in part], min(thresholds))
                for row, instances, threshold in zip(part, detected, thresholds, strict=True):
                    found[row] = {
                        name: kept([each for each in instances if each.label == label], threshold, self.max_objects)
                        for label, name in enumerate(OBJECT_NAMES)
                    }
        return found

    def _colors(
        self, images: list[Image.Image], requests: list, found: dict[int, dict[str, list[Instance]]]
    ) -> dict[tuple[int, str, int], str]:
        """The colours that the clauses look at, by row, class and place in it."""
        wanted = [
            (row, name, place)
            for row, instances in found.items()
            for name, place in sorted(need_color(requests[row], instances, exact=self.credit == "partial"))
        ]
        colors: dict[tuple[int, str, int], str] = {}
        for part in self.batches(wanted):
            instances = [found[row][name][place] for row, name, place in part]
            crops = [
                cropped(images[row], each.box, each.mask) for (row, _, _), each in zip(part, instances, strict=True)
            ]
            named = self._model["colors"](crops, [name for _, name, _ in part])
            colors.update(zip(part, named, strict=True))
        return colors

    def _verdict(self, request: Request, found: dict[str, list[Detection]]) -> Verdict:
        if self.credit == "partial":
            return partial_credit(request, found, self.position_threshold, self.floor)
        return strict_credit(request, found, self.position_threshold)


def _request(metadata: Mapping[str, Any]) -> Request | UserError | None:
    try:
        return read_request(metadata)
    except UserError as error:
        return error
