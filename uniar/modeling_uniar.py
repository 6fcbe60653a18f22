"""The AR model: text in Qwen3-VL's way, and the logits of visual bits (docs/checkpoint-format.md, 3, 5 and 6).

Shapes: B rows · P prefix positions · T drawn visual tokens · L levels · S patches per token · K bits per code · H
hidden.
"""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLForConditionalGeneration, Qwen3VLModel

from uniar import generation
from uniar.attention import causal_mask
from uniar.checkpoint import StrictLoading
from uniar.configuration_uniar import UniARConfig
from uniar.engine.layers import layers_of
from uniar.errors import UserError
from uniar.modeling_text import UniARTextLayer, UniARTextModel, residual_stream
from uniar.modeling_vision import UniARVisionModel
from uniar.shared_prefix import SharedPrefixes
from uniar.teacher_forcing import WrittenOutput, drawn_logits, written_log_probs
from uniar.visual_head import visual_head


def image_features(found: Tensor, image_mask: Tensor, places: Tensor | None) -> Tensor:
    """Features of images, (n, H), at the image positions of `image_mask` (B, P); 0 elsewhere. places: (B, P) which of
    them each is, where some stand at several; None where they stand in their order. Returns (B, P, H)."""
    if places is None:
        return found.new_zeros(*image_mask.shape, found.shape[-1]).masked_scatter(image_mask[..., None], found)
    return found[places].masked_fill(~image_mask[..., None], 0)


class UniARModel(Qwen3VLModel):
    """Qwen3-VL's backbone, which also reads images given as visual bits."""

    config: UniARConfig

    def __init__(self, config: UniARConfig) -> None:
        super(Qwen3VLModel, self).__init__(config)
        self.visual = UniARVisionModel._from_config(config.vision_config)
        self.language_model = UniARTextModel._from_config(config.text_config)
        self.rope_deltas = None
        self.post_init()

    def token_types(self, input_ids: Tensor) -> Tensor:
        """(B, P) ids → 0 text, 1 image, 2 video: transformers 5 asks for what the model card's snippets pop."""
        return (input_ids == self.config.image_token_id).int() + 2 * (input_ids == self.config.video_token_id).int()

    def rotary_positions(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, image_grid_thw: Tensor | None = None
    ) -> Tensor:
        """(3, B, P) rotary positions (docs/checkpoint-format.md, 6); `image_grid_thw` lists the images row by row, in
        patches."""
        positions, _ = self.get_rope_index(
            input_ids, self.token_types(input_ids), image_grid_thw=image_grid_thw, attention_mask=attention_mask
        )
        return positions

    def embed_images(
        self, input_ids: Tensor, features: Sequence[Tensor], places: int | None = None, written: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Token embeddings with level 0 of `features` (L tensors of (image tokens, H)) at the image positions, of which
        there are `places` (None: they are counted, and the host waits for it). The last `written` columns are text that
        the model wrote, whatever tokens it is of.

        Returns (embeddings (B, P, H), mask (B, P) of the image positions). Raises ValueError on a count mismatch.
        """
        image_mask = input_ids == self.config.image_token_id
        if written:
            image_mask = F.pad(image_mask[:, :-written], (0, written))
        embeds = self.get_input_embeddings()(input_ids)
        places = int(image_mask.sum()) if places is None else places
        if places != len(features[0]):
            raise ValueError(
                f"input_ids hold {places} image tokens, the images or visual bits give {len(features[0])}."
            )
        return embeds.masked_scatter(image_mask[..., None], features[0].to(embeds.dtype)), image_mask

    def hidden_before_norm(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        image_mask: Tensor,
        deepstack: Sequence[Tensor],
        extra_layers: Iterable[nn.Module] = (),
        shared: SharedPrefixes | None = None,
    ) -> Tensor:
        """(B, P, H) hidden states behind the text layers and `extra_layers`, without the final norm
        (docs/checkpoint-format.md, 5); with `shared` those of packed rows.

        All layers see one causal mask with `attention_mask` (B, P) as padding, and one set of rotary positions.
        `deepstack` features are added behind the first text layers at `image_mask`, as far as there are text layers.
        """
        text, features = self.language_model, None
        if shared is None:
            mask = causal_mask(text.config, inputs_embeds, attention_mask)
        else:
            added_to = inputs_embeds.dtype if text.config._attn_implementation == "eager" else None
            mask = shared.mask(attention_mask, added_to)
            features = shared.packed((image_mask.flatten().cumsum(0) - 1).clamp(min=0).view_as(image_mask))
            image_mask, inputs_embeds = shared.packed(image_mask), shared.packed(inputs_embeds)
            position_ids = shared.packed(position_ids.permute(1, 2, 0)).permute(2, 0, 1)
        rotary = text.rotary_emb(inputs_embeds, position_ids)
        hidden = residual_stream(inputs_embeds, text.layers)
        del inputs_embeds
        for number, layer in enumerate([*text.layers, *extra_layers]):
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
            if number < min(len(deepstack), len(text.layers)) and len(deepstack[number]):
                hidden = hidden + image_features(deepstack[number].to(hidden.dtype), image_mask, features)
        return hidden

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        visual_bits: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Qwen3-VL's forward. `visual_bits` (…, L, S, K) stand in for `pixel_values`, in the order of the images."""
        cached = 0 if past_key_values is None else past_key_values.get_seq_length()
        given = input_ids if inputs_embeds is None else inputs_embeds
        if attention_mask is None and given is not None:
            # Without one, transformers would take a jump in the positions for the start of another packed sequence.
            rows, length = given.shape[:2]
            attention_mask = torch.ones(rows, cached + length, dtype=torch.long, device=given.device)
        if mm_token_type_ids is None and input_ids is not None and cached == 0:
            mm_token_type_ids = self.token_types(input_ids)
        if visual_bits is None:
            return super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                pixel_values=pixel_values,
                image_grid_thw=image_grid_thw,
                mm_token_type_ids=mm_token_type_ids,
                **kwargs,
            )
        if pixel_values is not None or input_ids is None or image_grid_thw is None:
            raise ValueError("visual_bits take the place of pixel_values and need input_ids and image_grid_thw.")
        main, *deepstack = self.visual.language_features(visual_bits)
        embeds, image_mask = self.embed_images(input_ids, [main])
        if position_ids is None:
            position_ids = self.compute_3d_position_ids(
                input_ids=input_ids,
                inputs_embeds=embeds,
                image_grid_thw=image_grid_thw,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                mm_token_type_ids=mm_token_type_ids,
            )
        output = self.language_model(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            visual_pos_masks=image_mask,
            deepstack_visual_embeds=deepstack,
            **kwargs,
        )
        output.rope_deltas = self.rope_deltas  # transformers 5.17 passes them on
        return output


class UniARForConditionalGeneration(StrictLoading, Qwen3VLForConditionalGeneration):
    """Understands images, and draws them bit by bit."""

    config: UniARConfig
    model: UniARModel
    kept_layers = 0
    """how many layers, of backbone and visual decoder, keep their activations where the others are checkpointed"""

    def __init__(self, config: UniARConfig) -> None:
        super(Qwen3VLForConditionalGeneration, self).__init__(config)
        text = config.text_config
        self.model = UniARModel(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        if config.vistok_pred:
            self.output_layer_vistok = visual_head(config)
        if config.visual_transformer_decoder:
            self.visual_decoder = nn.ModuleList(
                UniARTextLayer(text, layer_idx=text.num_hidden_layers + depth)
                for depth in range(config.visual_transformer_decoder_depth)
            )
        self.post_init()

    def shared_prefixes(self, names: Sequence[Hashable] | None, input_ids: Tensor, tail: int) -> SharedPrefixes | None:
        """Of rows of `input_ids` with a tail of so many positions; None where nothing is shared, and with flash-attn,
        which takes no mask."""
        if names is None or "flash" in self.config.text_config._attn_implementation:
            return None
        return SharedPrefixes.of(names, input_ids.shape[1] - tail, tail, input_ids.device)

    @property
    def visual_decoder_layers(self) -> Sequence[nn.Module]:
        """The layers between backbone and visual head; none when the config has no visual decoder."""
        return self.visual_decoder if self.config.visual_transformer_decoder else ()

    def _set_gradient_checkpointing(self, enable: bool = True, **how: Any) -> None:
        """transformers', whoever switches it on, for all layers but the last `kept_layers`. They are the first that the
        backward pass is done with: one of them, at the peak, costs nothing."""
        super()._set_gradient_checkpointing(enable, **how)
        for layer in layers_of(self)[::-1][: self.kept_layers]:
            layer.gradient_checkpointing = False

    def visual_logits(self, hidden: Tensor) -> Tensor:
        """(…, H) hidden states → (…, L, S, K, 2) logits of bit 0 and bit 1. Raises UserError without a head."""
        if not self.config.vistok_pred:
            raise UserError("this checkpoint has vistok_pred false: it reads images but has no head to draw them.")
        return self.output_layer_vistok(hidden).unflatten(-1, (*self.config.vision_config.code_shape, 2))

    def set_trainable(self, text: bool = False) -> None:
        """Trains what drawing goes through (docs/checkpoint-format.md, 9): text layers, input embeddings, visual
        decoder and head; with `text` also the final norm and `lm_head`, which no image gradient reaches.

        The vision tower stays as it is.
        """
        self.requires_grad_(True)
        self.model.visual.requires_grad_(False)
        for only_text in (self.model.language_model.norm, self.lm_head):
            only_text.requires_grad_(text)
        self.get_input_embeddings().requires_grad_(True)  # also where lm_head shares their weight

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        visual_bits: Tensor | None = None,
        online_rollout_codes: Tensor | None = None,
        is_vistok_pred: bool = False,
        written_tokens: Tensor | None = None,
        written_mask: Tensor | None = None,
        text_temperature: float = 1.0,
        reference_hidden: Tensor | None = None,
        reference_head: nn.Module | None = None,
        written_positions: int = 0,
        prefix_names: Sequence[Hashable] | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | WrittenOutput:
        """Text logits, or with `is_vistok_pred` the teacher-forced logits of drawn visual bits, or with
        `written_tokens` the teacher-forced log-probabilities of a text (uniar/teacher_forcing.py).

        For the latter `online_rollout_codes` are the drawn bits (B, T, L, S, K), {0, 1}: the last T image tokens of
        every row of `input_ids`. Any image tokens before them belong to `pixel_values` (or to `visual_bits`).
        `image_grid_thw` lists all images row by row and may be left out when `position_ids` (3, B, P) are given.
        Returns `.logits` (B, T, L, S, K, 2): of bit 0 and of bit 1, each given all earlier tokens.

        `prefix_names`: B names, equal where all that comes before the drawn bits, or the text, is the same; it is
        computed once then (uniar/shared_prefix.py). Nothing may follow the drawn bits.
        """
        if is_vistok_pred:
            if online_rollout_codes is None or input_ids is None:
                raise ValueError("is_vistok_pred needs input_ids and the drawn bits in online_rollout_codes.")
            logits = drawn_logits(
                self,
                input_ids,
                attention_mask,
                position_ids,
                pixel_values,
                image_grid_thw,
                visual_bits,
                online_rollout_codes,
                prefix_names,
            )
            return CausalLMOutputWithPast(logits=logits)
        if written_tokens is not None:
            return written_log_probs(
                self,
                input_ids,
                attention_mask,
                position_ids,
                visual_bits,
                written_tokens,
                written_mask,
                text_temperature,
                reference_hidden,
                reference_head,
                written_positions,
                prefix_names,
            )
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            pixel_values=pixel_values,
            image_grid_thw=image_grid_thw,
            mm_token_type_ids=mm_token_type_ids,
            inputs_embeds=inputs_embeds,
            pixel_values_videos=pixel_values_videos,
            video_grid_thw=video_grid_thw,
            visual_bits=visual_bits,
            **kwargs,
        )

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """transformers' `generate`, also with `visual_bits=` in place of `pixel_values`."""
        input_ids = kwargs.get("input_ids", inputs)
        if kwargs.get("mm_token_type_ids") is None and input_ids is not None:
            kwargs["mm_token_type_ids"] = self.model.token_types(input_ids)
        return super().generate(inputs, **kwargs)

    def prepare_inputs_for_generation(self, *args: Any, is_first_iteration: bool = False, **kwargs: Any) -> dict:
        prepared = super().prepare_inputs_for_generation(*args, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and kwargs.get("use_cache", True):
            prepared.pop("visual_bits", None)
        return prepared

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Beams and several returned sequences. Images lie end to end, not one per row: each row's repeat together."""
        images = {
            name: kwargs.pop(name)
            for name in ("pixel_values", "visual_bits", "image_grid_thw")
            if expand_size > 1 and kwargs.get(name) is not None
        }
        if "image_grid_thw" in images and input_ids is not None:
            spatial = self.config.vision_config.spatial
            places = (input_ids == self.config.image_token_id).sum(1)
            ends = images["image_grid_thw"].prod(1).cumsum(0) // spatial
            counts = torch.searchsorted(ends, places.cumsum(0), right=True).diff(prepend=ends.new_zeros(1))
            if "visual_bits" in images:
                images["visual_bits"] = images["visual_bits"].reshape(-1, *self.config.vision_config.code_shape)
            lengths = {"pixel_values": places * spatial, "visual_bits": places, "image_grid_thw": counts}
            for name, tensor in images.items():
                blocks = tensor.split(lengths[name].tolist())
                images[name] = torch.cat([block for block in blocks for _ in range(expand_size)])
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)
        return input_ids, kwargs | images

    def generate_visual(
        self,
        prefix_input_ids: Tensor,
        attention_mask: Tensor,
        pos_ids_all: Tensor,
        pos_ids_image: Tensor,
        image_token_num: int,
        pixel_values: Tensor | None = None,
        input_image_grid_thw: Tensor | None = None,
        temperature: float = 1.0,
        cfg: float = 1.0,
        show_progress: bool = False,
        return_raw_codes: bool = False,
        generator: torch.Generator | None = None,
        memory_budget: int | None = None,
    ) -> Tensor:
        """Draws from the 2B rows of `prepare_visual_inputs` (conditional, then unconditional). See uniar.generation.

        Returns indices (B, T, L, S) int64, or with `return_raw_codes` bits (B, T, L, S, K) uint8. `cfg` ≤ 1 runs the
        conditional half alone; `temperature` 0 is greedy; `memory_budget` is in bytes.
        """
        return generation.generate_visual(
            self,
            prefix_input_ids,
            attention_mask,
            pos_ids_all,
            image_token_num,
            pixel_values=pixel_values,
            input_image_grid_thw=input_image_grid_thw,
            temperature=temperature,
            cfg=cfg,
            show_progress=show_progress,
            return_raw_codes=return_raw_codes,
            generator=generator,
            memory_budget=memory_budget,
        )


AutoModel.register(UniARConfig, UniARModel)
AutoModelForCausalLM.register(UniARConfig, UniARForConditionalGeneration)
AutoModelForImageTextToText.register(UniARConfig, UniARForConditionalGeneration)
