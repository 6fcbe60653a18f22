"""Configurations of the AR model and of its image tokenizer (docs/checkpoint-format.md, 2)."""

from typing import Any

from transformers import AutoConfig
from transformers.models.qwen3_vl.configuration_qwen3_vl import (
    Qwen3VLConfig,
    Qwen3VLTextConfig,
    Qwen3VLVisionConfig,
)


class UniARVisionConfig(Qwen3VLVisionConfig):
    """Qwen3-VL's vision tower with a binary spherical quantizer behind its last and its deepstack layers.

    `vistok_pred`, `vistok_pred_layernorm` and `vistok_pred_transformer_head` are carried through for the reference's
    sake and read by nothing here.
    """

    model_type = "uniar_vision"

    out_hidden_size: int = 4096
    use_bsq: bool = True
    bsq_dim: int = 64
    bsq_hidden_dim: int = 8192
    bsq_skip_final_layernorm: bool = True
    vistok_pred: bool = False
    vistok_pred_layernorm: bool = False
    vistok_pred_transformer_head: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if not self.use_bsq:
            raise ValueError("use_bsq is false: a UniAR vision tower without its quantizer has no bits to predict.")
        if not 1 <= self.bsq_dim <= 64:
            raise ValueError(f"bsq_dim is {self.bsq_dim}; codes are stored as int64 indices, so it must be 1 to 64.")

    @property
    def levels(self) -> int:
        """L: the last layer and each deepstack layer is quantized on its own."""
        return 1 + len(self.deepstack_visual_indexes)

    @property
    def spatial(self) -> int:
        """S: patches in a visual token."""
        return self.spatial_merge_size**2

    @property
    def code_shape(self) -> tuple[int, int, int]:
        """(L, S, K): the bits of one visual token."""
        return self.levels, self.spatial, self.bsq_dim

    @property
    def pixels_per_token(self) -> int:
        """Side of the square that one visual token covers, in pixels; image sides are multiples of it."""
        return self.patch_size * self.spatial_merge_size

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        # The tower's axial rotary table has no free parameter; transformers 4.57 knows no such key.
        output.pop("rope_parameters", None)
        return output


class UniARConfig(Qwen3VLConfig):
    """Qwen3-VL's configuration and the shape of the visual-bit head.

    `vistok_pred_use_mlp` wins over `vistok_pred_layernorm`: the head is Linear, RMSNorm → Linear, or
    RMSNorm → Linear → tanh-GELU → Linear.
    """

    model_type = "uniar"
    sub_configs_defaults = {"vision_config": UniARVisionConfig, "text_config": Qwen3VLTextConfig}  # noqa: RUF012
    # What transformers before 5.23 calls it.
    sub_configs = {"vision_config": UniARVisionConfig, "text_config": Qwen3VLTextConfig}  # noqa: RUF012

    vistok_pred: bool = False
    vistok_pred_layernorm: bool = False
    vistok_pred_use_mlp: bool = False
    visual_transformer_decoder: bool = False
    visual_transformer_decoder_depth: int = 4

    def to_dict(self) -> dict[str, Any]:
        output = super().to_dict()
        if isinstance(text := output.get("text_config"), dict):
            text.update(_rope_keys_of_transformers_4(text))
        return output

    def to_diff_dict(self) -> dict[str, Any]:
        output = super().to_diff_dict()
        output["text_config"].update(_rope_keys_of_transformers_4(output["text_config"]))
        return output


def _rope_keys_of_transformers_4(text_config: dict[str, Any]) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, where transformers 4.57 looks for what 5 keeps in `rope_parameters`."""
    scaling = dict(text_config.get("rope_parameters") or {})
    theta = scaling.pop("rope_theta", None)
    return {} if theta is None else {"rope_theta": theta, "rope_scaling": scaling}


AutoConfig.register("uniar", UniARConfig)
AutoConfig.register("uniar_vision", UniARVisionConfig)
