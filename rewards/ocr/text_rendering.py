"""`text_rendering`: which of the words that the prompt asks for are written in the image, and what else is."""

from collections.abc import Mapping
from typing import Any

from PIL import Image

from rewards.contract.base import Reward, RewardBatch
from rewards.ocr.reward import OCR, target_texts
from rewards.ocr.text_distance import text_distance
from rewards.ocr.words import match_words, words_of
from uniar.errors import UserError


class TextRendering(Reward):
    """CVTG's word accuracy (arXiv:2503.23461), from 0 to 1: the share of the words asked for that were read, each word
    that was read counting once, without case and punctuation. With `extra_cost` c and `malformed_credit` m it is
    max(0, matched + m · malformed − c · extra) / words.

    A word is malformed where what was read in its place is at least half like it; missing where nothing is; extra
    where it stands for none. Reads as `ocr` does, and takes the same texts as asked for; a sample without any has no
    score. Details: `matched`, `words`, `malformed`, `missing`, `extra` (numbers of words), `edit_distance` (characters,
    from the texts in the order nearest to what was read), and which words they are.

    Args:
        text_key: the metadata key of the target text.
        extra_cost: what a word that nobody asked for costs, in words; else filling an image with words pays.
        malformed_credit: what a malformed word is worth, in words, 0 to 1.
        min_confidence: what is read with less confidence, 0 to 1, is left out.
        recognizer: another PP-OCR recognition model, an ONNX file with its characters in it; null for the bundled one.
        threads: CPU threads; null for all.

    Raises UserError for a number out of range, a model file that is missing or no such model, and metadata that is not
    a string.
    """

    usual_range = (0.0, 1.0)

    def __init__(
        self,
        text_key: str = "text",
        extra_cost: float = 0.0,
        malformed_credit: float = 0.0,
        min_confidence: float = 0.5,
        recognizer: str | None = None,
        threads: int | None = None,
    ):
        if not extra_cost >= 0:
            raise UserError(f"extra_cost is {extra_cost}; it cannot be negative.")
        if not 0 <= malformed_credit <= 1:
            raise UserError(f"malformed_credit is {malformed_credit}; it lies between 0 and 1.")
        self.text_key, self.extra_cost, self.malformed_credit = text_key, extra_cost, malformed_credit
        self.ocr = OCR(text_key, min_confidence=min_confidence, recognizer=recognizer, threads=threads)

    def check_sample(self, prompt: str, metadata: Mapping[str, Any]) -> None:
        self.ocr.check_sample(prompt, metadata)

    def load(self) -> None:
        self.ocr.name = self.name
        self.ocr.load()

    def score(self, batch: RewardBatch) -> list[dict[str, Any] | UserError | None]:
        self.load()
        rows = zip(batch.prompts, batch.images, batch.metadata, strict=True)
        return [self._score_one(prompt, image, metadata) for prompt, image, metadata in rows]

    def _score_one(
        self, prompt: str, image: Image.Image, metadata: Mapping[str, Any]
    ) -> dict[str, Any] | UserError | None:
        try:
            targets = target_texts(prompt, metadata, self.text_key)
        except UserError as error:
            return error
        words = [word for target in targets for word in words_of(target)]
        if not words:
            return None
        unknown, refusal = self.ocr.unknown_to_reader(targets)
        if refusal is not None:
            return refusal
        readings = self.ocr.read(image)
        match = match_words(words, words_of(readings[0]))
        worth = len(match.matched) + self.malformed_credit * len(match.malformed) - self.extra_cost * len(match.extra)
        plain = [target.translate(dict.fromkeys(map(ord, unknown))) for target in targets]
        said = {
            "missing": list(match.missing),
            "malformed": [f"{read} for {asked}" for asked, read in match.malformed],
            "extra": list(match.extra),
        }
        return {
            "score": max(0.0, worth) / match.words,
            "matched": len(match.matched),
            "words": match.words,
            **{name: len(which) for name, which in said.items()},
            "edit_distance": text_distance(readings, plain, any_order=True)[0],
            "why": "; ".join(f"{name} {', '.join(which)}" for name, which in said.items() if which) or "all there",
        }
