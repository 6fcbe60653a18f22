"""What the phases of a step hold at their peak, beyond weights, gradients and caches: the model's own code, run on the
meta device.

Shapes: B rows · P prefix positions · T visual tokens · L levels · S patches per token · K bits per code · H hidden.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rl.algorithm.losses import LossInputs, policy_loss
from rl.config.checkpointing import kept_layers
from rl.config.checks import takes_whole_rollouts
from rl.config.recipe import blamed_on
from rl.config.sections import Recipe
from rl.episodes.registry import EPISODES, Episodes
from rl.episodes.requests import TurnKind
from rl.plan.memory import Measured
from rl.plan.planned_model import PlannedModel
from rl.policy.loading import base_model
from rl.policy.text_kl import categorical_kl
from uniar.engine.layers import layers_of
from uniar.modeling_sd3 import SD3Transformer2DModelWithSigLIP
from uniar.modeling_text import residual_stream
from uniar.modeling_uniar import UniARForConditionalGeneration, image_features
from uniar.placement import DTYPES
from uniar.shared_prefix import SharedMask, SharedPrefixes
from uniar.teacher_forcing import over_vocabulary

DECODER_PROMPT_TOKENS = 333
"""77 of CLIP and 256 of T5"""


def turns_of(recipe: Recipe) -> Counter[TurnKind]:
    """How many turns of each kind a sample of a recipe's episodes takes at most. Raises UserError for an episode that
    is none."""
    episodes = Episodes(recipe.rollout.episodes, Path(recipe.source).parent)
    return episodes.most_turns([None, *recipe.rollout.episodes])


def _trained(recipe: Recipe) -> tuple[str, ...]:
    """What says which policy is trained."""
    return repr(recipe.model), *sorted(turns_of(recipe))


def alike_of(recipe: Recipe, rows: int) -> int:
    """How many samples of a prompt stand side by side in any micro-batch of `rows`, and share its prefix there.

    Each process has whole groups, or parts of them that micro-batches divide. Nothing is sure to be shared, 1, where
    samples are moved between processes (dynamic sampling), where an update has some of a rollout's, where a later turn
    has a prefix of its own, and where an episode may ask what it likes.
    """
    moved, episodes = recipe.rollout.dynamic_sampling is not None, recipe.rollout.episodes.values()
    if moved or not takes_whole_rollouts(recipe) or "flash" in recipe.model.attention:
        return 1
    if turns_of(recipe).total() > 1 or not EPISODES.keys() >= set(episodes):
        return 1
    return math.gcd(rows, recipe.rollout.samples_per_prompt)


class Simulation:
    """Runs the phases of recipes on one model's shapes, and remembers what they held."""

    def __init__(self, model: PlannedModel) -> None:
        self.model = model
        self._found: dict[tuple, Any] = {}

    def kept_layers(self, recipe: Recipe) -> int:
        """Of how many activations are kept for the backward pass."""
        return kept_layers(recipe.trainer, self.layers(recipe))

    def layers(self, recipe: Recipe) -> int:
        """Of backbone and visual decoder."""
        return len(layers_of(base_model(self.policy(recipe))))

    def policy(self, recipe: Recipe) -> nn.Module:
        """The policy on the meta device, as the recipe trains it."""
        return self._once(("policy", _trained(recipe)), lambda: self._new_policy(recipe))

    def _new_policy(self, recipe: Recipe) -> nn.Module:
        return self.model.policy(recipe.model, turns_of(recipe))

    def decoder(self, dtype: torch.dtype) -> tuple[SD3Transformer2DModelWithSigLIP, AutoencoderKL]:
        """The SD3 transformer and the autoencoder on the meta device."""
        return self._once(
            ("decoder", dtype), lambda: (self.model.sd3_transformer(dtype), self.model.autoencoder(dtype))
        )

    def update(self, recipe: Recipe, rows: int, prefix: int, tokens: int) -> int:
        """`update_bytes` of a recipe's policy."""
        kept, pictures, alike = self.kept_layers(recipe), turns_of(recipe)["picture"], alike_of(recipe, rows)
        settings = (recipe.rollout.guidance, repr(recipe.algorithm))
        key = (*_trained(recipe), *settings, rows, prefix, tokens, kept, pictures, alike)
        return self._once(
            ("update", *key),
            # A model of its own, as checkpointing stays switched on.
            lambda: update_bytes(
                self._new_policy(recipe), recipe, rows, prefix, tokens, kept=kept, pictures=pictures, alike=alike
            ),
        )

    def text(self, recipe: Recipe, rows: int, length: int, answer: int) -> int:
        """`text_bytes` of a recipe's policy."""
        kept = self.kept_layers(recipe)
        return self._once(
            ("text", *_trained(recipe), rows, length, answer, kept),
            lambda: text_bytes(self._new_policy(recipe), rows, length, answer, kept=kept),
        )

    def written(self, recipe: Recipe, rows: int, prefix: int, tokens: int, *, gradient: bool = True) -> int:
        """`written_bytes` of a recipe's policy."""
        kept, texts = self.kept_layers(recipe), turns_of(recipe)["text"] if gradient else 1
        alike = alike_of(recipe, rows)
        return self._once(
            ("written", *_trained(recipe), rows, prefix, tokens, gradient, kept, texts, alike),
            lambda: written_bytes(
                self._new_policy(recipe), rows, prefix, tokens, gradient=gradient, kept=kept, texts=texts, alike=alike
            ),
        )

    def replay(self, recipe: Recipe, rows: int, prefix: int, tokens: int) -> int:
        """`replay_bytes` of a recipe's policy."""
        alike = alike_of(recipe, rows)
        key = (*_trained(recipe), recipe.rollout.guidance, rows, prefix, tokens, alike)
        return self._once(
            ("replay", *key), lambda: replay_bytes(self.policy(recipe), recipe, rows, prefix, tokens, alike=alike)
        )

    def decode(self, recipe: Recipe, rows: int) -> int:
        """`decode_bytes` of a recipe's decoder."""
        drawn, decode = recipe.rollout, recipe.decode
        size = (round(drawn.height * decode.upsampling_ratio), round(drawn.width * decode.upsampling_ratio))
        dtype, guided = DTYPES[decode.dtype or recipe.model.dtype], decode.guidance_scale > 1
        one = self._once(
            ("decode", size, dtype, guided),
            lambda: decode_bytes(*self.decoder(dtype), size, guided=guided),
        )
        return rows * one

    def _once(self, key: tuple, run: Callable[[], Any]) -> Any:
        if key not in self._found:
            self._found[key] = run()
        return self._found[key]


def update_bytes(
    policy: nn.Module,
    recipe: Recipe,
    rows: int,
    prefix: int,
    tokens: int,
    *,
    kept: int,
    pictures: int = 1,
    alike: int = 1,
) -> int:
    """Of a forward and backward pass over `rows` samples: activations kept for the backward pass, and the most that is
    in work at once. Where both branches are trained, twice the rows. Each has so many pictures, a later one behind the
    earlier, and all wait for one backward pass. alike: how many rows share a prefix."""
    model = base_model(policy)
    branches = 1 + recipe.rollout.guidance_settings.convention.trains_unconditional
    model.train()
    checkpoint_layers(model, kept)
    adapters_under_autocast(policy)
    with Measured(policy) as measured:
        losses = []
        for number in range(pictures):
            gap = visual_gap(model, rows * branches, prefix + number * tokens, tokens, alike)
            losses.append(_loss(gap[:rows] if branches == 1 else gap[:rows] + (gap[rows:] - gap[:rows]), recipe))
            del gap
        torch.stack(losses).sum().backward()
        del losses
    return measured.peak


def written_bytes(
    policy: nn.Module,
    rows: int,
    prefix: int,
    tokens: int,
    *,
    gradient: bool,
    kept: int,
    texts: int = 1,
    alike: int = 1,
) -> int:
    """Of the replay of `rows` texts of so many tokens, with a reference's KL, and of its backward pass where there is
    `gradient`: activations, and the distributions over the vocabulary that are in work at once. With several texts per
    sample as many such passes wait for one backward pass. alike: how many rows share a prefix."""
    model = base_model(policy)
    if gradient:
        model.train()
        checkpoint_layers(model, kept)
    adapters_under_autocast(policy)
    with torch.set_grad_enabled(gradient), Measured(policy) as measured:
        found = torch.stack([sum(written_text(model, rows, prefix, tokens, alike)).sum() for _ in range(texts)])
        if gradient:
            found.sum().backward()
        del found
    return measured.peak


def text_bytes(policy: nn.Module, rows: int, length: int, answer: int, *, kept: int) -> int:
    """Of the text-KL term of `rows` questions of `length` positions, the last `answer` of them their answers: what it
    keeps for the backward pass, which comes when the visual bits have had their forward pass."""
    model = base_model(policy)
    model.train()
    checkpoint_layers(model, kept)
    adapters_under_autocast(policy)
    with Measured(policy) as measured:
        divergence = text_divergence(model, rows, length, answer)
        held = measured.held
        del divergence
    return held


def checkpoint_layers(model: UniARForConditionalGeneration, kept: int) -> None:
    """Gradient checkpointing of all layers but the last `kept`."""
    model.kept_layers = kept
    model.gradient_checkpointing_enable({"use_reentrant": False})


def adapters_under_autocast(policy: nn.Module) -> None:
    """The meta device has no autocast. On a GPU it converts what enters a float32 adapter of a model of half precision
    to a copy of the model's type, which is kept for the backward pass; products are of that type."""
    dtype = base_model(policy).dtype
    for module in policy.modules():
        for adapter in (module.lora_A, module.lora_B) if isinstance(module, LoraLayer) else ():
            for linear in adapter.to(dtype).values():
                if adapter is module.lora_A and dtype != torch.float32:
                    linear.register_forward_pre_hook(lambda _, given: tuple(tensor.clone() for tensor in given))


def replay_bytes(policy: nn.Module, recipe: Recipe, rows: int, prefix: int, tokens: int, *, alike: int = 1) -> int:
    """Of a forward pass without gradient over `rows` samples, both branches at once where both are trained. alike: how
    many rows share a prefix."""
    model = base_model(policy)
    branches = 1 + recipe.rollout.guidance_settings.convention.trains_unconditional
    with torch.no_grad(), Measured(policy) as measured:
        visual_gap(model, rows * branches, prefix, tokens, alike)
    return measured.peak


def decode_bytes(
    transformer: SD3Transformer2DModelWithSigLIP, vae: AutoencoderKL, size: tuple[int, int], *, guided: bool
) -> int:
    """Of decoding one image of `size` (height, width) in pixels: the larger of a denoising step and the autoencoder.
    Several at once take as many times as much."""
    with torch.no_grad(), Measured(transformer) as denoising:
        denoise(transformer, vae, size)
    with torch.no_grad(), Measured(vae) as painting:
        paint(vae, size)
    return max(denoising.peak * (2 if guided else 1), painting.peak)


def denoise(transformer: SD3Transformer2DModelWithSigLIP, vae: AutoencoderKL, size: tuple[int, int]) -> None:
    """One step of denoising one image of `size` (height, width) in pixels."""
    config, dtype = transformer.config, transformer.dtype
    height, width = _latent_size(vae, size)
    patches = (height // config.patch_size) * (width // config.patch_size)
    transformer(
        hidden_states=_meta(dtype, 1, config.in_channels, height, width),
        encoder_hidden_states=_meta(dtype, 1, DECODER_PROMPT_TOKENS, config.joint_attention_dim),
        pooled_projections=_meta(dtype, 1, config.pooled_projection_dim),
        timestep=_meta(dtype, 1),
        prepared_siglip=_meta(dtype, 1, patches, transformer.inner_dim),
        return_dict=False,
    )


def paint(vae: AutoencoderKL, size: tuple[int, int]) -> None:
    """The autoencoder's part of one image of `size` (height, width) in pixels."""
    vae.decode(_meta(vae.dtype, 1, vae.config.latent_channels, *_latent_size(vae, size)), return_dict=False)[0].float()


def _latent_size(vae: AutoencoderKL, size: tuple[int, int]) -> tuple[int, int]:
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return size[0] // factor, size[1] // factor


def _meta(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def visual_gap(model: UniARForConditionalGeneration, rows: int, prefix: int, tokens: int, alike: int = 1) -> Tensor:
    """Raw gaps (B, T, L, S, K) on the meta device, as UniARForConditionalGeneration computes them from drawn bits; its
    checks of ids and masks look at values, which meta tensors do not have."""
    layers = [*model.model.language_model.layers, *model.visual_decoder_layers]
    shared = _shared(rows, alike, prefix, tokens)
    hidden = _hidden(
        model, layers, rows, prefix + tokens, tokens, lambda embeds: residual_stream(embeds, layers), shared
    )
    logits = model.visual_logits(hidden[:, -tokens:] if shared is None else shared.predicting(hidden)).float()
    return logits[..., 1] - logits[..., 0]


def text_divergence(model: UniARForConditionalGeneration, rows: int, length: int, answer: int) -> Tensor:
    """The text-KL term on the meta device, as rl/policy/text_kl.py computes it of answers that are all as long. All
    other positions count as a picture's."""
    language = model.model.language_model
    hidden = language.norm(_hidden(model, language.layers, rows, length, length - answer))
    logits = model.lm_head(hidden[:, -answer - 1 :])[:, :-1].float().flatten(0, 1)
    return categorical_kl(logits, torch.empty_like(logits)).sum()


def written_text(
    model: UniARForConditionalGeneration, rows: int, prefix: int, tokens: int, alike: int = 1
) -> list[Tensor]:
    """Log-probabilities, entropies and KL on the meta device, as uniar/teacher_forcing.py computes them of texts that
    are all as long and have no pictures before them."""
    language = model.model.language_model
    layers, shared = language.layers, _shared(rows, alike, prefix, tokens)
    states = _hidden(model, layers, rows, prefix + tokens, 0, lambda embeds: residual_stream(embeds, layers), shared)
    hidden = language.norm(states[:, -tokens - 1 : -1] if shared is None else shared.predicting(states))
    written = torch.empty(rows, tokens, dtype=torch.long, device="meta")
    return over_vocabulary(model.lm_head, hidden, written, 1.0, torch.empty_like(hidden.detach()))


def _hidden(
    model: UniARForConditionalGeneration,
    layers: Iterable[nn.Module],
    rows: int,
    length: int,
    tokens: int,
    stream: Callable[[Tensor], Tensor] = lambda embeds: embeds,
    shared: SharedPrefixes | None = None,
) -> Tensor:
    """(rows, length, H) behind the layers, or with `shared` packed rows, of rows that have `tokens` visual tokens each;
    `stream` makes of their embeddings what the layers add to."""
    text, vision, device = model.config.text_config, model.config.vision_config, "meta"
    bits = torch.empty(rows, tokens, *vision.code_shape, dtype=torch.uint8, device=device)
    image_mask = torch.ones(rows, length, dtype=torch.bool, device=device)
    main, *deepstack = model.model.visual.language_features(bits)
    hidden = model.get_input_embeddings()(torch.empty(rows, length, dtype=torch.long, device=device))
    hidden = hidden.masked_scatter(image_mask[..., None], main.to(hidden.dtype))
    mask: Tensor | SharedMask = torch.ones(rows, 1, length, length, dtype=torch.bool, device=device)
    features = None
    if shared is not None:
        mask = shared.mask(torch.ones(rows, length, dtype=torch.bool, device=device), None)
        features = shared.packed(torch.empty(rows, length, dtype=torch.long, device=device))
        image_mask, hidden = shared.packed(image_mask), shared.packed(hidden)
    rotary = (torch.empty(*hidden.shape[:2], text.head_dim, dtype=hidden.dtype, device=device),) * 2
    hidden = stream(hidden)
    for number, layer in enumerate(layers):
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
        if number < len(deepstack) and tokens:
            hidden = hidden + image_features(deepstack[number].to(hidden.dtype), image_mask, features)
    return hidden


def _shared(rows: int, alike: int, prefix: int, tokens: int) -> SharedPrefixes | None:
    return SharedPrefixes.of([row // alike for row in range(rows)], prefix, tokens, "meta")


def _loss(gap: Tensor, recipe: Recipe) -> Tensor:
    algorithm, kept = recipe.algorithm, gap.detach()
    inputs = LossInputs(
        bits=torch.empty(gap.shape, dtype=torch.uint8, device=gap.device),
        gap=gap,
        old_gap=torch.empty_like(kept),
        ref_gap=torch.empty_like(kept) if algorithm.beta else None,
        advantages=torch.empty(len(gap), device=gap.device),
    )
    with blamed_on(recipe, "algorithm.loss"):
        return policy_loss(inputs, algorithm.loss_settings)[0]
