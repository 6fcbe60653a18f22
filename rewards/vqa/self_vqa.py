"""`self_vqa`: UniAR itself is asked whether what was drawn shows the prompt, and reads its own visual bits.

Drawing and understanding share one context (the bits), so nothing is decoded and no other model is needed.
"""

import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from rewards.contract.base import RewardBatch
from rewards.models.model_reward import ModelReward, Precision
from rewards.vqa.yes_no import ANSWERS, EDIT_QUESTION, QUESTION, Answers, Question, ask_all, chat, reserved_tokens
from uniar.conversations import Drawing, as_drawings
from uniar.errors import UserError
from uniar.turn_prompt import patch_grids

POLICY = "policy"


class SelfVQA(ModelReward):
    """The probability that the first token of UniAR's answer is a yes, 0 to 1, given the visual bits of the rollout. Of
    an edit UniAR is shown the picture that it began with and then the bits, and is asked whether that was done which
    was asked for and nothing else. A sample whose metadata lacks a field of the question has no score. Details: the
    question, and the likeliest token.

    Args:
        judge: checkpoint folder or hub id of a UniAR that stays as it is; or "policy": the model that is trained (in an
            evaluation the one evaluated), as it is at that moment.
        question: template; {prompt} is the prompt, any other field a metadata key of the sample.
        edit_question: the same of an edit, of which UniAR sees two pictures; null for `question`, about the second.
        answers: what counts as a yes; those of them that are a single token of the model's.
        against: null for the probability among all tokens; a list such as [No, no] for P(yes) / (P(yes) + P(no)).
        batch_size: samples judged at a time.
        device: where a judge of its own runs; null follows the trainer (a GPU if there is one).
        dtype: of that judge's weights and activations.

    Raises UserError for a checkpoint that cannot be had, when it is loaded, and for a batch without visual bits.
    """

    usual_range = (0.0, 1.0)

    def __init__(
        self,
        judge: str,
        question: str = QUESTION,
        edit_question: str | None = EDIT_QUESTION,
        answers: list[str] | tuple[str, ...] = ANSWERS,
        against: list[str] | None = None,
        batch_size: int = 8,
        device: str | None = None,
        dtype: Precision = "bfloat16",
    ):
        super().__init__(batch_size, device, dtype)
        self.judge, self.question, self.answers, self.against = judge, Question(question), answers, against
        self.edit_question = None if edit_question is None else Question(edit_question)
        self.wants_policy = judge == POLICY
        self.overlaps_decoding = not self.wants_policy  # the policy's weights may be gathered only for a while
        self._processor: Any = None

    def build(self) -> nn.Module:
        from uniar.checkpoint import load_processor, resolve_checkpoint
        from uniar.inspection import inspect_checkpoint
        from uniar.modeling_uniar import UniARForConditionalGeneration

        folder: Path = resolve_checkpoint(self.judge)
        inspect_checkpoint(folder, decoder=False)
        model = UniARForConditionalGeneration.from_pretrained(folder, torch_dtype=self.dtype)
        self._use(load_processor(folder))
        return _reader_only(model, sees=self.edit_question is not None)

    def load(self) -> None:
        if not self.wants_policy:
            super().load()

    def bind(self, policy: nn.Module | None, processor: Any) -> None:
        self._model = policy
        if processor is not None and processor is not self._processor:
            self._use(processor)

    def to(self, device: str | torch.device) -> None:
        """Moves a judge of its own; the policy is where the trainer has it."""
        if not self.wants_policy:
            super().to(device)

    def score(self, batch: RewardBatch) -> list[dict[str, Any] | UserError | None]:
        self.load()
        if self._model is None:
            raise UserError("self_vqa with judge: policy works in training and evaluation only; name a checkpoint.")
        if batch.bits is None:
            raise UserError("self_vqa reads visual bits, and this batch has none; vqa_score reads images.")

        results: list[dict[str, Any] | UserError | None] = [None] * len(batch)
        edits = [row for row, sources in enumerate(batch.source_images) if sources and self.edit_question is not None]
        others = [row for row in range(len(batch)) if row not in edits]
        for question, rows in ((self.question, others), (self.edit_question, edits)):
            if question is not None and rows:
                asked = self._asked(question, batch.select(rows), with_sources=question is self.edit_question)
                for row, result in zip(rows, asked, strict=True):
                    results[row] = result
        return results

    def _asked(
        self, question: Question, batch: RewardBatch, with_sources: bool
    ) -> list[dict[str, Any] | UserError | None]:
        def answer(rows: list[int], questions: list[str]) -> tuple[list[float], list[str]]:
            logits = []
            # Nothing here may leave inference tensors behind in a model that is trained.
            with torch.no_grad() if self.wants_policy else torch.inference_mode():
                for part in self.batches(list(zip(rows, questions, strict=True))):
                    shown = self._shown(batch, [row for row, _ in part], with_sources)
                    logits.append(self._first_token_logits(shown, [text for _, text in part]).float().cpu())
            return self._read.read(torch.cat(logits))

        return ask_all(question, batch.prompts, batch.metadata, reserved_tokens(self._processor), answer)

    def _shown(self, batch: RewardBatch, rows: list[int], with_sources: bool) -> list[list[Drawing]]:
        """What UniAR sees of each sample: the pictures that it began with, in the size of the drawing, and that."""
        unit, encoded = self._model.config.vision_config.pixels_per_token, {}  # a group has the same pictures
        found = []
        for row in rows:
            drawing = Drawing(batch.bits[row], token_grid(batch.bits.shape[1], batch.images[row].size)[0])
            height, width = (side * unit for side in drawing.grid)
            sources = batch.source_images[row] if with_sources else []
            for source in sources:
                if id(source) not in encoded:
                    small = source.resize((width, height), Image.Resampling.BICUBIC)
                    [encoded[id(source)]] = as_drawings([small], self._model, self._processor)
            found.append([*(encoded[id(source)] for source in sources), drawing])
        return found

    def _use(self, processor: Any) -> None:
        self._processor = processor
        self._read = Answers(processor.tokenizer, self.answers, self.against)

    def _first_token_logits(self, shown: list[list[Drawing]], questions: list[str]) -> torch.Tensor:
        """(B, vocabulary)"""
        model, processor, texts = self._model, self._processor, []
        token = processor.image_token
        for drawings, question in zip(shown, questions, strict=True):
            first, *behind = chat(processor, question, pictures=len(drawings)).split(token)
            widened = (token * len(one.bits) + text for one, text in zip(drawings, behind, strict=True))
            texts.append("".join([first, *widened]))
        encoded = processor.tokenizer(texts, padding=True, padding_side="left", return_tensors="pt").to(model.device)
        every = [drawing for drawings in shown for drawing in drawings]
        return model(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            visual_bits=torch.cat([drawing.bits.to(model.device) for drawing in every]),
            image_grid_thw=patch_grids([[one.grid for one in every]], model.config.vision_config.spatial_merge_size).to(
                model.device
            ),
            use_cache=False,
            logits_to_keep=1,
        ).logits[:, -1]


def token_grid(tokens: int, size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of the visual tokens behind an image of `size` (width, height): what fits its shape best."""
    shape = size[0] / size[1]
    pairs = [(rows, tokens // rows) for rows in range(1, tokens + 1) if tokens % rows == 0]
    return min(pairs, key=lambda pair: abs(math.log(pair[1] / pair[0] / shape)))


def _reader_only(model: nn.Module, sees: bool) -> nn.Module:
    """Without what only draws and, where it `sees` no picture but as bits, without what reads pixels."""
    if model.config.vistok_pred:
        del model.output_layer_vistok
    if model.config.visual_transformer_decoder:
        del model.visual_decoder
    if not sees:
        model.model.visual.blocks = nn.ModuleList()
    return model
