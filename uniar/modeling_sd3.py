"""The SD3 transformer that reads visual bits: Stable Diffusion 3's MMDiT with the image tokenizer's features added to
its latent tokens (docs/checkpoint-format.md, 7; SD3: arXiv 2403.03206).

Shapes: B images · C latent channels · h, w latent sides · N patches of the features' grid · M = (h/p)·(w/p) latent
tokens, p the patch size · H·L feature channels (`siglip_channels`) · D `inner_dim`.
"""

import math
from contextvars import ContextVar
from typing import Any

import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from uniar.sd3_block import SD3Block

# The parent's forward has no argument for features; its patch embedding, positions included, ends where they go in. A
# context variable hands them to the hook there, so that threads that share a model keep their features apart.
_features_of_this_call: ContextVar[Tensor | None] = ContextVar("features_of_this_call", default=None)


def _add_features(module: nn.Module, inputs: tuple[Tensor], tokens: Tensor) -> Tensor:
    features = _features_of_this_call.get()
    return tokens if features is None else tokens + features


class _FusedRMSNorm(RMSNorm):
    """diffusers' norm in one kernel. On a CPU it stays as it is: in bfloat16 its bits would be others."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        if hidden_states.device.type == "cpu" or hidden_states.dtype != self.weight.dtype:
            return super().forward(hidden_states)
        return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.eps)


def _fuse_norms(block: nn.Module) -> None:
    """Queries' and keys' norms, where the model has them; their weights keep their names."""
    for module in list(block.modules()):
        for name, child in module.named_children():
            if type(child) is RMSNorm and child.elementwise_affine and child.bias is None:
                setattr(module, name, _FusedRMSNorm(tuple(child.dim), child.eps))


class SD3Transformer2DModelWithSigLIP(SD3Transformer2DModel):
    """SD3's transformer and one projection, `siglip_embed_add_latent`, from the bits' features to its latent tokens.

    `siglip_channels` is L times the tokenizer's hidden size; features are multiplied by `image_token_scale_factor`.
    With `super_resolution` the latent may be finer than the bits (`upscale_factor` times, when no latent says how
    much). `drop_image_token_prob_for_cfg`, `train_use_random_crop_pos_embed` and `random_crop_pos_embed_max_resolution`
    describe how the weights were trained; they are kept in the config and read by nothing here.
    """

    _repeated_blocks = ("SD3Block",)  # what diffusers' compile_repeated_blocks compiles
    _no_split_modules = ("SD3Block",)

    @register_to_config
    def __init__(
        self,
        sample_size: int = 128,
        patch_size: int = 2,
        in_channels: int = 16,
        num_layers: int = 18,
        attention_head_dim: int = 64,
        num_attention_heads: int = 18,
        joint_attention_dim: int = 4096,
        caption_projection_dim: int = 1152,
        pooled_projection_dim: int = 2048,
        out_channels: int = 16,
        pos_embed_max_size: int = 96,
        dual_attention_layers: tuple[int, ...] = (),
        qk_norm: str | None = None,
        siglip_channels: int = 4608,
        drop_image_token_prob_for_cfg: float = 0.1,
        image_token_scale_factor: float = 1.0,
        add_siglip_tensor_to_latent: bool = True,
        super_resolution: bool = False,
        upscale_factor: int = 1,
        train_use_random_crop_pos_embed: bool = False,
        random_crop_pos_embed_max_resolution: int | None = None,
    ) -> None:
        super().__init__(
            sample_size=sample_size,
            patch_size=patch_size,
            in_channels=in_channels,
            num_layers=num_layers,
            attention_head_dim=attention_head_dim,
            num_attention_heads=num_attention_heads,
            joint_attention_dim=joint_attention_dim,
            caption_projection_dim=caption_projection_dim,
            pooled_projection_dim=pooled_projection_dim,
            out_channels=out_channels,
            pos_embed_max_size=pos_embed_max_size,
            dual_attention_layers=dual_attention_layers,
            qk_norm=qk_norm,
        )
        if not add_siglip_tensor_to_latent:
            raise ValueError(
                "add_siglip_tensor_to_latent is false; it must be true, as only the latent tokens take the features."
            )
        for block in self.transformer_blocks:
            block.__class__ = SD3Block
            _fuse_norms(block)
        self.siglip_embed_add_latent = nn.Linear(siglip_channels, self.inner_dim, bias=False)
        self.pos_embed.register_forward_hook(_add_features)

    def prepare_siglip_tensor(
        self, siglip_tensor: Tensor, grid: tuple[int, int], target_grid: tuple[int, int] | None = None
    ) -> Tensor:
        """Features (B, N, H·L) on `grid` → (B, M, D) on `target_grid`, to be added to the latent tokens.

        Grids are (rows, columns) in patches, tokens in raster order. Where they differ, the features are resized
        bicubically without corner alignment. `target_grid` None means `upscale_factor` times `grid`. The result depends
        on no timestep, so it serves every step of a decode.

        Raises ValueError when the tokens do not fill the grid, or a resize is asked of a model without
        `super_resolution`.
        """
        rows, columns = grid
        batch, tokens, channels = siglip_tensor.shape
        if tokens != rows * columns or channels != self.config.siglip_channels:
            raise ValueError(
                f"siglip_tensor is {tuple(siglip_tensor.shape)}; a grid of {rows}×{columns} needs "
                f"(B, {rows * columns}, {self.config.siglip_channels})."
            )
        if target_grid is None:
            target_grid = rows * self.config.upscale_factor, columns * self.config.upscale_factor
        features = siglip_tensor * self.config.image_token_scale_factor
        if tuple(target_grid) != (rows, columns):
            if not self.config.super_resolution:
                raise ValueError(
                    f"features on {rows}×{columns} patches cannot be resized to {target_grid[0]}×{target_grid[1]}: "
                    "this model has super_resolution false, so the two grids must be the same."
                )
            features = features.transpose(1, 2).reshape(batch, channels, rows, columns)
            features = F.interpolate(features, size=tuple(target_grid), mode="bicubic", align_corners=False)
            features = features.flatten(2).transpose(1, 2)
        return self.siglip_embed_add_latent(features)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        block_controlnet_hidden_states: list[Tensor] | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        skip_layers: list[int] | None = None,
        siglip_tensor: Tensor | None = None,
        siglip_grid: tuple[int, int] | None = None,
        prepared_siglip: Tensor | None = None,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Latents (B, C, h, w) at `timestep` (B) → velocities (B, C, h, w); the rest as in SD3Transformer2DModel.

        The features come as `siglip_tensor` (B, N, H·L) on `siglip_grid` (rows, columns; without it, the grid of N
        patches shaped like the latent), or as `prepared_siglip` (B, M, D), what `prepare_siglip_tensor` made of them,
        or not at all. They are added whatever `skip_layers` says.
        """
        if siglip_tensor is not None:
            if prepared_siglip is not None:
                raise ValueError("siglip_tensor and prepared_siglip are the same features; pass one of them.")
            target = tuple(side // self.config.patch_size for side in hidden_states.shape[-2:])
            grid = siglip_grid or grid_shaped_like(target, siglip_tensor.shape[1])
            prepared_siglip = self.prepare_siglip_tensor(siglip_tensor, grid, target)

        token = _features_of_this_call.set(prepared_siglip)
        try:
            return super().forward(
                hidden_states=hidden_states,
                encoder_hidden_states=encoder_hidden_states,
                pooled_projections=pooled_projections,
                timestep=timestep,
                block_controlnet_hidden_states=block_controlnet_hidden_states,
                joint_attention_kwargs=joint_attention_kwargs,
                return_dict=return_dict,
                skip_layers=skip_layers,
            )
        finally:
            _features_of_this_call.reset(token)


def grid_shaped_like(target: tuple[int, int], patches: int) -> tuple[int, int]:
    """(rows, columns) of `patches` patches with the aspect ratio of `target`. Raises ValueError if there is none."""
    step = math.gcd(*target)
    unit = (target[0] // step) * (target[1] // step)
    scale = math.isqrt(patches // unit)
    if scale**2 * unit != patches:
        raise ValueError(
            f"{patches} patches fill no grid with the aspect ratio of the latent's {target[0]}×{target[1]}."
        )
    return target[0] // step * scale, target[1] // step * scale
