"""Visual bits → images: the tokenizer's features steer a Stable Diffusion 3 decoder (docs/checkpoint-format.md, 7).

Shapes: B samples · T visual tokens · L levels · S patches per token · K bits per code · C latent channels · h, w latent
sides · R transformer rows (B, or 2B with guidance: unconditional rows first). A grid is (rows, columns).
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Self

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from uniar.checkpoint import load_scheduler, require_decoder_parts, resolve_checkpoint
from uniar.compiling import compile_options, compiling
from uniar.decoder_parts import load_exactly
from uniar.decoder_sizes import DecoderSizes
from uniar.errors import RunError, UserError
from uniar.modeling_sd3 import SD3Transformer2DModelWithSigLIP
from uniar.modeling_vision import UniARVisionModel
from uniar.prompt_embedding import constant_prompt
from uniar.quantizer import indices_to_bits


def draw_latents(seeds: Sequence[int], latent_shape: tuple[int, int, int]) -> Tensor:
    """Starting noise (B, C, h, w), float32 on the CPU: each sample's from its own seed, equal seeds equal noise."""
    noise = {
        seed: torch.randn(latent_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
        for seed in set(seeds)
    }
    return torch.stack([noise[seed] for seed in seeds])


class UniARVisualDecoder(nn.Module):
    """Draws images from visual bits. Frozen, always in eval mode, and without the text encoders: the prompt is
    constant, so `prompt_embeds` and `pooled_prompt_embeds` hold what they made of it."""

    def __init__(
        self,
        bsq_encoder: UniARVisionModel,
        sd3_transformer: SD3Transformer2DModelWithSigLIP,
        vae: AutoencoderKL,
        scheduler: FlowMatchEulerDiscreteScheduler,
        prompt_embeds: Tensor,
        pooled_prompt_embeds: Tensor,
    ) -> None:
        super().__init__()
        self.bsq_encoder = bsq_encoder
        self.sd3_transformer = sd3_transformer
        self.vae = vae
        self.scheduler_config = dict(scheduler.config)
        self.register_buffer("prompt_embeds", prompt_embeds)
        self.register_buffer("pooled_prompt_embeds", pooled_prompt_embeds)
        self.sizes = DecoderSizes.of(bsq_encoder.config, sd3_transformer.config, vae.config)
        self.vae_factor = self.sizes.vae_factor
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_factor)
        self._compiled = False
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_pretrained(
        cls, path: str | Path, device: torch.device | str | None = None, torch_dtype: torch.dtype = torch.bfloat16
    ) -> Self:
        """Loads the decoder's parts of a checkpoint folder or hub id (docs/checkpoint-format.md, 1); `device` None: on
        the CPU.

        What the text encoders made of the prompt is kept (uniar/prompt_embedding.py); where it is not yet, they are
        loaded first and leave memory before the rest is loaded. Raises UserError for a missing part, a part of another
        kind, and a missing, left-over or mismatched tensor, by name.
        """
        device = "cpu" if device is None else device
        folder = resolve_checkpoint(path)
        require_decoder_parts(folder)
        pipeline = folder / "sd3_pipeline"
        prompt_embeds, pooled_prompt_embeds = constant_prompt(pipeline, device, torch_dtype)
        decoder = cls(
            UniARVisionModel.from_pretrained(folder / "bsq_encoder", dtype=torch_dtype),
            load_exactly(SD3Transformer2DModelWithSigLIP, folder / "sd3_transformer", torch_dtype=torch_dtype),
            load_exactly(AutoencoderKL, pipeline / "vae", torch_dtype=torch_dtype),
            load_scheduler(pipeline / "scheduler"),
            prompt_embeds,
            pooled_prompt_embeds,
        )
        return decoder.to(device)

    @property
    def device(self) -> torch.device:
        return self.prompt_embeds.device

    @property
    def dtype(self) -> torch.dtype:
        return self.prompt_embeds.dtype

    def compile_blocks(self) -> Self:
        """Has the SD3 transformer's blocks compiled at their first use, one form for all of a kind; images differ in
        the last digit then. `decode` raises RunError where they do not compile."""
        self.sd3_transformer.compile_repeated_blocks(fullgraph=True, options=compile_options(self.device.type))
        self._compiled = True
        return self

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode: nothing here is trained."""
        return super().train(False)

    @property
    def default_upsampling_ratio(self) -> float:
        """Of `decode`: 2 as in UniAR; in a model without super-resolution, the one ratio that it can draw."""
        return self.sizes.default_ratio

    def output_size(self, ar_height: int, ar_width: int, upsampling_ratio: float = 1.0) -> tuple[int, int]:
        """(height, width) in pixels of what `decode` draws: AR size × ratio, rounded to whole pixels.

        Raises UserError for a size that the decoder cannot draw (uniar/decoder_sizes.py).
        """
        return self.sizes.output(ar_height, ar_width, upsampling_ratio)

    def latent_shape(self, ar_height: int, ar_width: int, upsampling_ratio: float = 1.0) -> tuple[int, int, int]:
        """(C, h, w) of one sample's starting noise. Raises as `output_size` does."""
        height, width = self.output_size(ar_height, ar_width, upsampling_ratio)
        return self.sd3_transformer.config.in_channels, height // self.vae_factor, width // self.vae_factor

    @torch.no_grad()
    def encode_features(self, bits: Tensor, grid: tuple[int, int]) -> Tensor:
        """Bits (B, T, L, S, K) on a grid of visual tokens → `siglip_tensor` (B, T·S, hidden·L), raster order."""
        return self.bsq_encoder.decoder_features(bits.to(self.device), grid)

    @torch.no_grad()
    def decode(
        self,
        visual_generated_ids: Tensor,
        ar_height: int,
        ar_width: int,
        upsampling_ratio: float | None = None,
        *,
        num_inference_steps: int = 28,
        guidance_scale: float = 1.5,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        noise_seeds: Sequence[int] | None = None,
        batch_size: int | None = None,
        output_type: str = "pil",
        show_progress: bool = False,
    ) -> list[Image.Image] | Tensor:
        """Indices (B, T, L, S) int64 or bits (B, T, L, S, K) of ar_height × ar_width pixels → B images, larger by
        `upsampling_ratio` (None: `default_upsampling_ratio`).

        Guidance compares with a branch whose features are zero; at a scale of 1 or less that branch is not run. The
        starting noise comes from one of: `noise_seeds`, one per sample (equal seeds, equal noise: how a group is
        decoded alike, on any device); `latents` (B, C, h, w); a `generator` for all or one per sample; torch's default
        one. It is drawn in float32 for the whole batch first, so that `batch_size`, the images decoded at once (all of
        them by default; memory grows with it), does not change the images beyond rounding.

        `output_type`: "pil"; "pt", (B, 3, H, W) float32 in 0 to 1; or "latent", (B, C, h, w) float32.

        Raises UserError for sizes as `output_size` does and for fewer than one step, ValueError for tensors of a wrong
        shape and contradictory arguments, RunError for an image that is not finite.
        """
        ratio = self.default_upsampling_ratio if upsampling_ratio is None else upsampling_ratio
        latent_shape = self.latent_shape(ar_height, ar_width, ratio)
        unit = self.bsq_encoder.config.pixels_per_token
        grid = ar_height // unit, ar_width // unit
        bits = self._bits(visual_generated_ids, grid)
        if num_inference_steps < 1:
            raise UserError(f"num_inference_steps is {num_inference_steps}; it must be 1 or more.")
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be 1 or more.")
        if output_type not in ("pil", "pt", "latent"):
            raise ValueError(f"output_type is {output_type!r}; it must be 'pil', 'pt' or 'latent'.")
        noise = _starting_noise(len(bits), latent_shape, generator, latents, noise_seeds)

        size = batch_size or len(bits)
        starts = range(0, len(bits), size)
        progress = tqdm(total=len(starts) * num_inference_steps, desc="decoding", disable=not show_progress)
        batches = []
        for start in starts:
            features = self.encode_features(bits[start : start + size], grid)
            with compiling("the decoder's blocks", "decode.compile false") if self._compiled else nullcontext():
                clean = self._denoise(
                    features, grid, noise[start : start + size], num_inference_steps, guidance_scale, progress
                )
            batches.append(clean if output_type == "latent" else self._paint(clean, output_type, start))
        progress.close()
        if output_type == "pil":
            return [image for batch in batches for image in batch]
        return torch.cat(batches)

    def schedule(self, num_inference_steps: int, latent_shape: tuple[int, int, int]) -> FlowMatchEulerDiscreteScheduler:
        """The checkpoint's scheduler, set to its steps: a new one each call, as it counts the steps it has taken."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler_config)
        mu = None
        if scheduler.config.use_dynamic_shifting:
            _, height, width = latent_shape
            tokens = height * width // self.sd3_transformer.config.patch_size**2
            names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
            mu = calculate_shift(tokens, *(scheduler.config[name] for name in names))
        scheduler.set_timesteps(num_inference_steps, device=self.device, mu=mu)
        scheduler.set_begin_index(0)
        return scheduler

    def _denoise(
        self,
        features: Tensor,
        token_grid: tuple[int, int],
        noise: Tensor,
        num_inference_steps: int,
        guidance_scale: float,
        progress: tqdm,
    ) -> Tensor:
        """Features (B, T·S, hidden·L) and noise (B, C, h, w) → latents (B, C, h, w), float32 between the steps."""
        transformer, merge = self.sd3_transformer, self.bsq_encoder.config.spatial_merge_size
        latent_shape = tuple(noise.shape[1:])
        patch_grid = token_grid[0] * merge, token_grid[1] * merge
        latent_grid = tuple(side // transformer.config.patch_size for side in latent_shape[1:])
        prepared = transformer.prepare_siglip_tensor(features, patch_grid, latent_grid)
        guided = guidance_scale > 1
        if guided:
            prepared = torch.cat([torch.zeros_like(prepared), prepared])
        rows = len(prepared)
        prompt_embeds = self.prompt_embeds.expand(rows, -1, -1)
        # All rows have the same conditioning. On a CPU a product of one row has other bits than one of many.
        conditioned = rows if self.device.type == "cpu" else 1
        pooled_prompt_embeds = self.pooled_prompt_embeds.expand(conditioned, -1)

        latents = noise.to(self.device, torch.float32)
        scheduler = self.schedule(num_inference_steps, latent_shape)
        for timestep in scheduler.timesteps:
            inputs = latents.to(self.dtype)
            (velocity,) = transformer(
                hidden_states=torch.cat([inputs, inputs]) if guided else inputs,
                encoder_hidden_states=prompt_embeds,
                pooled_projections=pooled_prompt_embeds,
                timestep=timestep.expand(conditioned),
                prepared_siglip=prepared,
                return_dict=False,
            )
            velocity = velocity.float()
            if guided:
                without, with_features = velocity.chunk(2)
                velocity = without + guidance_scale * (with_features - without)
            (latents,) = scheduler.step(velocity, timestep, latents, return_dict=False)
            progress.update()
        return latents

    def _paint(self, latents: Tensor, output_type: str, first: int) -> list[Image.Image] | Tensor:
        """Latents (B, C, h, w) → PIL images or (B, 3, H, W) float32 in 0 to 1. `first` numbers them in errors."""
        config = self.vae.config
        scaled = latents / config.scaling_factor + (config.shift_factor or 0.0)
        images = self.vae.decode(scaled.to(self.dtype), return_dict=False)[0].float()
        for number, finite in enumerate(images.isfinite().flatten(1).all(1).tolist()):
            if not finite:
                raise RunError(f"decoding sample {first + number} in {self.dtype} gave NaN or infinite pixels.")
        return self.image_processor.postprocess(images, output_type=output_type)

    def _bits(self, indices_or_bits: Tensor, grid: tuple[int, int]) -> Tensor:
        """Indices or bits, checked against the model and the grid → bits (B, T, L, S, K)."""
        levels, spatial, bsq_dim = self.bsq_encoder.config.code_shape
        expected = grid[0] * grid[1], levels, spatial
        found = tuple(indices_or_bits.shape)
        if not len(indices_or_bits) or found[1:] not in (expected, (*expected, bsq_dim)):
            raise ValueError(
                f"visual tokens are {found}; a grid of {grid[0]}×{grid[1]} needs int64 indices (B, "
                f"{', '.join(map(str, expected))}) or bits (B, {', '.join(map(str, expected))}, {bsq_dim})."
            )
        if len(found) == 5:
            return indices_or_bits
        if bsq_dim < 64 and bool(((indices_or_bits < 0) | (indices_or_bits >= 1 << bsq_dim)).any()):
            raise ValueError(
                f"visual indices run from {indices_or_bits.min()} to {indices_or_bits.max()}; codes of {bsq_dim} bits "
                f"have 0 to {(1 << bsq_dim) - 1}."
            )
        return indices_to_bits(indices_or_bits, bsq_dim)


def _starting_noise(
    samples: int,
    latent_shape: tuple[int, int, int],
    generator: torch.Generator | Sequence[torch.Generator] | None,
    latents: Tensor | None,
    noise_seeds: Sequence[int] | None,
) -> Tensor:
    """(B, C, h, w) from the one source that is given."""
    sources = {"generator": generator, "latents": latents, "noise_seeds": noise_seeds}
    given = [name for name, value in sources.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are given; the starting noise comes from one of them.")
    if latents is not None:
        if latents.shape != (samples, *latent_shape):
            raise ValueError(f"latents are {tuple(latents.shape)}; they must be {(samples, *latent_shape)}.")
        return latents
    if isinstance(generator, Sequence):
        _require_one_each("generator", generator, samples)
        noise = [torch.randn(latent_shape, generator=g, device=g.device, dtype=torch.float32) for g in generator]
        return torch.stack(noise)
    if noise_seeds is not None:
        _require_one_each("noise_seeds", noise_seeds, samples)
        return draw_latents(noise_seeds, latent_shape)
    device = generator.device if generator else "cpu"
    return torch.randn(samples, *latent_shape, generator=generator, device=device, dtype=torch.float32)


def _require_one_each(name: str, given: Sequence[object], samples: int) -> None:
    if len(given) != samples:
        raise ValueError(f"{name} has {len(given)} entries for {samples} samples; it needs one per sample.")
