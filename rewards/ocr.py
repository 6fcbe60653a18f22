"""`ocr`: is the text that the prompt asks for really written in the image?"""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from rewards.base import Reward, RewardBatch
from uniar.errors import UserError

# An apostrophe inside a word ("don't", "the girls' room") neither opens nor closes a quotation.
_QUOTED = re.compile(
    r'"(?P<double>[^"]+)"'
    r"|“(?P<curly>[^”]+)”"
    r"|‘(?P<single_curly>(?:[^’]|(?<=\w)’(?=\w))+)’"
    r"|(?<!\w)'(?P<single>(?:[^']|(?<=\w)'(?=\w))+)'(?!\w)"
    r"|「(?P<corner>[^」]+)」|『(?P<double_corner>[^』]+)』|«(?P<angle>[^»]+)»"
)


class OCR(Reward):
    """1 − min(lev(read, target), |target|) / |target|, from 0 to 1, where lev is the edit distance between the text
    read in the image (all of it, in reading order) and the text asked for, both without white space and case.

    Text beyond the target costs as many edits as it has characters, so a target that merely occurs somewhere in a
    longer text is not worth full marks.

    The target is the sample's metadata under `text_key` (a text, or a list of texts that are joined), else all quoted
    texts of the prompt joined in order. A sample with neither has no score. Reads with the models bundled in rapidocr
    (PP-OCR: Latin and Chinese script), on the CPU.

    Args:
        text_key: the metadata key of the target text.
        min_confidence: what is read with less confidence, 0 to 1, is left out.
        threads: CPU threads; None for all.

    Raises UserError for a confidence outside 0 to 1, fewer than 1 thread, and metadata that is no text.
    """

    def __init__(self, text_key: str = "text", min_confidence: float = 0.5, threads: int | None = None):
        if not 0 <= min_confidence <= 1:
            raise UserError(f"min_confidence is {min_confidence}; it lies between 0 and 1.")
        if threads is not None and threads < 1:
            raise UserError(f"threads is {threads}; at least 1 is needed.")
        self.text_key, self.min_confidence, self.threads = text_key, min_confidence, threads
        self._reader = None

    def load(self) -> None:
        if self._reader is not None:
            return
        from rapidocr import RapidOCR

        self._reader = RapidOCR(
            params={
                "Global.log_level": "error",  # it would warn at each image without text
                "Global.text_score": self.min_confidence,
                "EngineConfig.onnxruntime.intra_op_num_threads": -1 if self.threads is None else self.threads,
            }
        )

    def score(self, batch: RewardBatch) -> list[float | None]:
        scores = []
        for prompt, image, metadata in zip(batch.prompts, batch.images, batch.metadata, strict=True):
            target = normalize(target_text(prompt, metadata, self.text_key))
            scores.append(text_score(self.read(image), target) if target else None)
        return scores

    def read(self, image: Image.Image) -> str:
        """All text in the image, top to bottom and left to right, lines joined by a space; "" where there is none."""
        self.load()
        pixels_HWC = np.asarray(image.convert("RGB"))
        lines = self._reader(np.ascontiguousarray(pixels_HWC[:, :, ::-1])).txts  # it takes BGR
        return " ".join(lines or ())


def target_text(prompt: str, metadata: Mapping[str, Any], key: str = "text") -> str:
    """The text an image should show: metadata[key], else the quoted texts of the prompt joined by a space, else ""."""
    text = metadata.get(key)
    if text is None:
        return " ".join(quoted_texts(prompt))
    if isinstance(text, list | tuple) and all(isinstance(part, str) for part in text):
        return " ".join(text)
    if not isinstance(text, str):
        raise UserError(f"metadata {key!r} is {text!r}; a text or a list of texts is needed.")
    return text


def quoted_texts(prompt: str) -> list[str]:
    """The texts between quotation marks ("…", '…', “…”, ‘…’, 「…」, 『…』, «…»), in order."""
    return [next(text for text in match.groups() if text is not None) for match in _QUOTED.finditer(prompt)]


def normalize(text: str) -> str:
    """Without white space and case, and in Unicode's NFKC form: full-width letters and marks equal the plain ones."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_score(read: str, target: str) -> float:
    """1 − min(lev, |target|) / |target| of the normalised texts; `target` must not be empty."""
    from rapidfuzz.distance import Levenshtein

    read, target = normalize(read), normalize(target)
    return 1 - min(Levenshtein.distance(read, target), len(target)) / len(target)
