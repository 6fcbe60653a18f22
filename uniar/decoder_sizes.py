"""What sizes a checkpoint's visual decoder draws: known from its configs, before any weight is loaded."""

import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, Self

from uniar.configuration_uniar import UniARVisionConfig
from uniar.errors import UserError
from uniar.processing import check_size
from uniar.reading.files import read_json

RELEASED_SIDE = 512
"""pixels, of the square drawings that the released models were trained on"""


class DecoderSizes(NamedTuple):
    """In pixels, but for the factor and the switch."""

    pixels_per_token: int
    """of the AR model: patch × merge"""
    patch: int
    """of its vision tower"""
    vae_factor: int
    """pixels per side that a latent stands for"""
    unit: int
    """VAE factor × patch of the SD3 transformer"""
    largest: int
    """side that has position embeddings"""
    super_resolution: bool
    sample: int
    """side in latents of the drawing that it was made for"""

    @classmethod
    def of(cls, vision: UniARVisionConfig, sd3: Mapping[str, Any], vae: Mapping[str, Any]) -> Self:
        """sd3, vae: configs as diffusers writes them; what they leave out has the default of their class."""
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        unit = factor * sd3.get("patch_size", 2)
        largest = unit * sd3.get("pos_embed_max_size", 96)
        return cls(
            vision.pixels_per_token,
            vision.patch_size,
            factor,
            unit,
            largest,
            sd3.get("super_resolution", False),
            int(sd3.get("sample_size", 128)),
        )

    @classmethod
    def of_checkpoint(cls, folder: Path) -> Self:
        """Of a checkpoint folder whose parts are there. Raises UserError for a config that does not say."""
        configs = [folder / part / "config.json" for part in ("sd3_transformer", "sd3_pipeline/vae")]
        sd3, vae = (read_json(path, "decoder config") for path in configs)
        try:
            return cls.of(UniARVisionConfig.from_pretrained(folder / "bsq_encoder"), sd3, vae)
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise UserError(
                f"the configs of the visual decoder in {folder} do not say its sizes: {error!r}."
            ) from error

    @property
    def default_ratio(self) -> float:
        """2 as in UniAR; in a model without super-resolution, the one ratio that it can draw."""
        return 2.0 if self.super_resolution else self.unit / self.patch

    @property
    def default_side(self) -> int:
        """Of a square as the AR model draws it: what the decoder was made for, or RELEASED_SIDE where that is not a
        size it can have."""
        side = self.sample * self.vae_factor / self.default_ratio
        return int(side) if side > 0 and side % self.pixels_per_token == 0 else RELEASED_SIDE

    def output(self, ar_height: int, ar_width: int, upsampling_ratio: float = 1.0) -> tuple[int, int]:
        """(height, width) in pixels of what the decoder draws: AR size × ratio, rounded to whole pixels.

        Raises UserError, with the nearest valid sizes, when an AR side is not a multiple of the tokenizer's
        patch × merge, the ratio is not in 1 to 2, an output side is not a multiple of VAE factor × patch size, the
        output is larger than the position embeddings, or it is not the AR size in a model without super-resolution.
        """
        check_size(ar_height, ar_width, self.pixels_per_token)
        if not 1 <= upsampling_ratio <= 2:
            raise UserError(f"upsampling_ratio is {upsampling_ratio}; it must be 1 to 2.")
        unit, largest = self.unit, self.largest
        if not self.super_resolution and upsampling_ratio != self.default_ratio:
            raise UserError(
                f"upsampling_ratio is {upsampling_ratio}; this checkpoint's decoder has no super-resolution, so it "
                f"must be {self.default_ratio:g}."
            )
        size = (round(ar_height * upsampling_ratio), round(ar_width * upsampling_ratio))
        if any(side % unit for side in size) or max(size) > largest:
            # Both sides are whole multiples of the unit exactly at the multiples of this ratio.
            step = Fraction(unit, math.gcd(ar_height, ar_width))
            ceiling = min(Fraction(2), Fraction(largest, max(ar_height, ar_width)))
            below = math.floor(Fraction(upsampling_ratio) / step)
            nearest = [k * step for k in (min(below, ceiling // step), below + 1) if 1 <= k * step <= ceiling]
            advice = " and ".join(
                f"{int(ar_height * ratio)}×{int(ar_width * ratio)} (upsampling_ratio {float(ratio):.6g})"
                for ratio in nearest
            )
            what = []
            if any(side % unit for side in size):
                what.append(f"multiples of {unit} pixels")
            if max(size) > largest:
                what.append(f"at most {largest} pixels")
            raise UserError(
                f"{ar_height}×{ar_width} at upsampling_ratio {upsampling_ratio:.6g} would be {size[0]}×{size[1]}; "
                f"this decoder's sides must be {' and '.join(what)}; "
                + (f"the nearest valid sizes are {advice}." if advice else "choose a smaller AR size.")
            )
        return size
