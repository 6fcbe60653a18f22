"""`ocr`: is the text that the prompt asks for really written in the image?"""

import logging
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from rewards.contract.base import Reward, RewardBatch
from rewards.ocr.quotations import quoted_texts
from rewards.ocr.reading_order import reading_orders
from rewards.ocr.text_distance import normalize, text_score
from uniar.errors import UserError
from uniar.reading.files import reason_of

logger = logging.getLogger(__name__)


class OCR(Reward):
    """1 − min(lev(read, target), |target|) / |target|, from 0 to 1, where lev is the edit distance between the text
    read in the image (all of it, in reading order) and the text asked for, both without white space and case.

    Text beyond the target costs as many edits as it has characters, so a target that merely occurs somewhere in a
    longer text is not worth full marks.

    The target is the sample's metadata under `text_key` (a text, or a list of texts), else the quoted texts of the
    prompt; where all of a prompt is in quotation marks, those quoted in it. A sample with neither has no score, nor has
    one with letters that the reader does not know. Reads with the models bundled in rapidocr (PP-OCR: Latin and Greek
    script, Chinese and Japanese), on the CPU.

    Args:
        text_key: the metadata key of the target text.
        order: of several target texts: "any" takes the order nearest to what was read (a prompt seldom says which of
            two signs comes first), "given" joins them as they stand.
        min_confidence: what is read with less confidence, 0 to 1, is left out.
        recognizer: another PP-OCR recognition model, an ONNX file with its characters in it, say for Korean; null for
            the bundled one.
        threads: CPU threads; null for all.

    Raises UserError for a confidence outside 0 to 1, fewer than 1 thread, a model file that is missing or no such
    model, and metadata that is not a string.
    """

    usual_range = (0.0, 1.0)

    def __init__(
        self,
        text_key: str = "text",
        order: Literal["any", "given"] = "any",
        min_confidence: float = 0.5,
        recognizer: str | None = None,
        threads: int | None = None,
    ):
        if not 0 <= min_confidence <= 1:
            raise UserError(f"min_confidence is {min_confidence}; it lies between 0 and 1.")
        if threads is not None and threads < 1:
            raise UserError(f"threads is {threads}; at least 1 is needed.")
        self.text_key, self.order, self.min_confidence = text_key, order, min_confidence
        self.recognizer, self.threads = recognizer, threads
        self._reader = None
        self._alphabet: frozenset[str] = frozenset()

    def check_sample(self, prompt: str, metadata: Mapping[str, Any]) -> None:
        target_texts(prompt, metadata, self.text_key)

    def load(self) -> None:
        if self._reader is None:
            self._reader, self._alphabet = _build_reader(self.min_confidence, self.recognizer, self.threads)

    def score(self, batch: RewardBatch) -> list[dict[str, Any] | UserError | None]:
        self.load()
        return [
            self._score_one(prompt, image, metadata)
            for prompt, image, metadata in zip(batch.prompts, batch.images, batch.metadata, strict=True)
        ]

    def _score_one(
        self, prompt: str, image: Image.Image, metadata: Mapping[str, Any]
    ) -> dict[str, Any] | UserError | None:
        try:
            targets = [target for target in target_texts(prompt, metadata, self.text_key) if normalize(target)]
        except UserError as error:
            return error
        unknown, refusal = self.unknown_to_reader(targets)
        if refusal is not None:
            return refusal
        # A symbol that cannot be read must not cost marks that nobody could have got.
        targets = [normalize(target).translate(dict.fromkeys(map(ord, unknown))) for target in targets]
        if not any(targets):
            return None
        readings = self.read(image)
        return {
            "score": text_score(readings, targets, any_order=self.order == "any"),
            "why": f"read {readings[0]!r}" if readings[0] else "no text read",
        }

    def unknown_to_reader(self, targets: Sequence[str]) -> tuple[list[str], dict[str, Any] | None]:
        """The characters of the targets that the reader does not know, and where letters are among them, why there is
        no score."""
        unknown = sorted({letter for target in targets for letter in normalize(target)} - self._alphabet)
        letters = [character for character in unknown if unicodedata.category(character)[0] in "LMN"]
        if not letters:
            return unknown, None
        why = f"{' '.join(letters)}: the reader does not know these letters"
        logger.warning("no %s score for %r: %s.", self.name, " ".join(targets), why)
        return unknown, {"score": None, "why": why}

    def read(self, image: Image.Image) -> list[str]:
        """All text in the image, its pieces joined by a space; once for each order in which these may be meant to be
        read, [""] where there is none."""
        self.load()
        pixels_HWC = np.asarray(image.convert("RGB"))
        found = self._reader(np.ascontiguousarray(pixels_HWC[:, :, ::-1]))  # it takes BGR
        if not found.txts:
            return [""]
        # rapidocr's own order (by top edges) is right for what is hard to make lines of.
        orders = [*reading_orders(found.boxes), list(range(len(found.txts)))]
        return list(dict.fromkeys(" ".join(found.txts[piece] for piece in order) for order in orders))


def _build_reader(min_confidence: float, recognizer: str | None, threads: int | None) -> tuple[Any, frozenset[str]]:
    """The reader, its models loaded, and the characters it knows, normalised."""
    from rapidocr import RapidOCR

    params = {
        "Global.log_level": "error",  # it would warn at each image without text
        "Global.text_score": min_confidence,
        "EngineConfig.onnxruntime.intra_op_num_threads": -1 if threads is None else threads,
    }
    if recognizer is not None:
        params["Rec.model_path"] = recognizer
    try:
        reader = RapidOCR(params=params)
        # It would load them at the first image only, in the middle of a run.
        reader._load_det_model()
        reader._load_cls_model()
        characters = reader._load_rec_model().postprocess_op.character
    except Exception as error:  # onnxruntime's errors share no class but this one
        if recognizer is None:
            raise
        raise UserError(
            f"recognizer {recognizer} cannot be read as a recognition model: {reason_of(error)}."
        ) from error
    return reader, frozenset("".join(map(normalize, characters)))


def target_texts(prompt: str, metadata: Mapping[str, Any], key: str = "text") -> list[str]:
    """The texts an image should show: metadata[key], else the quoted texts of the prompt."""
    text = metadata.get(key)
    if text is None:
        return quoted_texts(prompt)
    if isinstance(text, list | tuple) and all(isinstance(part, str) for part in text):
        return list(text)
    if not isinstance(text, str):
        raise UserError(f"metadata {key!r} is {text!r}; a string or a list of strings is needed.")
    return [text]
