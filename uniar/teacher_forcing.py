"""Teacher forcing: what the model has drawn or written is fed to it, and each token is predicted from those before it.

Shapes: B rows · P prefix positions · T drawn visual tokens · A written tokens · V vocabulary · L levels · S patches per
token · K bits per code · H hidden.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import ModelOutput

from uniar.drawing_model import DrawingModel

LOGITS_AT_ONCE = 2**26
"""of the vocabulary that are held at once: 441 positions of 151,936 entries, 256 MiB in float32"""


def drawn_logits(
    model: DrawingModel,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    pixel_values: Tensor | None,
    image_grid_thw: Tensor | None,
    visual_bits: Tensor | None,
    drawn_bits: Tensor,
    prefix_names: Sequence[Hashable] | None = None,
) -> Tensor:
    """(B, T, L, S, K, 2) logits of drawn bits, as UniARForConditionalGeneration.forward says."""
    rows, tokens = drawn_bits.shape[:2]
    image_mask = input_ids == model.config.image_token_id
    from_the_right = image_mask.flip(1).cumsum(1).flip(1)
    drawn = image_mask & (from_the_right <= tokens)
    found = image_mask.sum(1).tolist()  # the one time that the host waits for the GPU
    if min(found) < tokens:
        raise ValueError(f"every row needs at least {tokens} image tokens for its drawn bits; the rows have {found}.")
    grids = None if image_grid_thw is None else _without_last_of_each_row(image_grid_thw, rows)
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    if position_ids is None:
        if image_grid_thw is None:
            raise ValueError("image_grid_thw or position_ids must say where the image tokens stand.")
        position_ids = model.model.rotary_positions(input_ids, attention_mask, image_grid_thw)

    bits = drawn_bits.flatten(0, 1)
    if pixel_values is not None or visual_bits is not None:
        bits = _with_given_images(model, bits, drawn[image_mask], pixel_values, grids, visual_bits)
    # Once for all images, so that processes with and without images to edit call the same modules equally often.
    main, *deepstack = model.model.visual.language_features(bits)
    shared = model.shared_prefixes(prefix_names, input_ids, tokens)
    hidden = model.model.hidden_before_norm(
        model.model.embed_images(input_ids, [main], places=sum(found))[0],  # held by nobody else
        attention_mask,
        position_ids,
        image_mask,
        deepstack,
        model.visual_decoder_layers,
        shared,
    )
    del main, deepstack  # the head needs their room
    if shared is not None:
        return model.visual_logits(shared.predicting(hidden))
    # The state before a token predicts it.
    predicting = drawn.byte().argsort(dim=1, descending=True, stable=True)[:, :tokens] - 1
    hidden = hidden.gather(1, predicting[..., None].expand(-1, -1, hidden.shape[-1]))
    return model.visual_logits(hidden)


def _with_given_images(
    model: DrawingModel,
    drawn_bits: Tensor,
    is_drawn: Tensor,
    pixel_values: Tensor | None,
    grids: Tensor | None,
    visual_bits: Tensor | None,
) -> Tensor:
    """Bits of all image tokens in reading order: those of images to edit, and the drawn ones."""
    if visual_bits is None:
        if grids is None:
            raise ValueError("pixel_values need image_grid_thw.")
        visual_bits = model.model.visual.encode(pixel_values, grids)
    elif pixel_values is not None:
        raise ValueError("give the images to edit as pixel_values or as visual_bits, not both.")
    visual_bits = visual_bits.flatten(0, -4)
    if len(visual_bits) + len(drawn_bits) != len(is_drawn):
        raise ValueError(
            f"input_ids hold {len(is_drawn)} image tokens, the images give {len(visual_bits) + len(drawn_bits)}."
        )
    both = drawn_bits.new_empty(len(is_drawn), *drawn_bits.shape[1:])
    both[is_drawn], both[~is_drawn] = drawn_bits, visual_bits.to(drawn_bits.dtype)
    return both


def _without_last_of_each_row(image_grid_thw: Tensor, rows: int) -> Tensor:
    """(rows·n, 3) grids → those of all but each row's last image; every row has the same number of images."""
    if len(image_grid_thw) % rows:
        raise ValueError(f"{len(image_grid_thw)} image grids do not divide evenly over {rows} rows.")
    return image_grid_thw.view(rows, -1, 3)[:, :-1].reshape(-1, 3)


@dataclass
class WrittenOutput(ModelOutput):
    """A text, replayed. What stands behind its end is 0."""

    log_probs: Tensor | None = None
    """(B, A) float32 of each written token"""
    entropy: Tensor | None = None
    """(B, A) float32, in nats, of the distribution that each token is of"""
    hidden: Tensor | None = None
    """(B, A, H) the normed states that predict the tokens: of a reference, all that KL needs of it"""
    kl: Tensor | None = None
    """(B, A) float32, in nats: KL(policy ‖ reference) over the whole vocabulary; None without a reference"""


def written_log_probs(
    model: DrawingModel,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    visual_bits: Tensor | None,
    tokens: Tensor,
    mask: Tensor | None,
    temperature: float,
    reference_hidden: Tensor | None,
    reference_head: nn.Module | None,
    positions: int = 0,
    prefix_names: Sequence[Hashable] | None = None,
) -> WrittenOutput:
    """The log-probabilities of written `tokens` (B, A), the last A columns of `input_ids` (B, P + A), at `temperature`.

    `mask` (B, A) says which of them a row has written; the prefix before them is left-padded, and `attention_mask`
    (B, P + A) is 0 on all padding. `position_ids` are (3, B, P + A), `visual_bits` (…, L, S, K) those of the prefixes'
    pictures in reading order. With `reference_hidden` (B, A, H), what a reference's pass of the same tokens had as
    `hidden`, the output has `kl`; `reference_head` is the reference's own `lm_head`, None the policy's.

    `positions`: the largest B·A of all processes. `prefix_names`: as UniARForConditionalGeneration.forward says.
    Raises ValueError for what is missing and for a temperature that is not above 0.
    """
    if input_ids is None or attention_mask is None or position_ids is None or mask is None:
        raise ValueError("written_tokens need input_ids, attention_mask, position_ids and written_mask.")
    if temperature <= 0:
        raise ValueError(f"text_temperature is {temperature}; it must be above 0.")
    backbone, width = model.model, tokens.shape[1]
    if visual_bits is None:  # the same modules run where there are no pictures, as another process may have some
        visual_bits = input_ids.new_empty(0, *model.config.vision_config.code_shape, dtype=torch.uint8)
    main, *deepstack = backbone.visual.language_features(visual_bits)
    embeds, image_mask = backbone.embed_images(input_ids, [main], written=width)
    shared = model.shared_prefixes(prefix_names, input_ids, width)
    states = backbone.hidden_before_norm(embeds, attention_mask, position_ids, image_mask, deepstack, shared=shared)
    # The state before a token predicts it.
    hidden = backbone.language_model.norm(states[:, -width - 1 : -1] if shared is None else shared.predicting(states))
    found = over_vocabulary(model.lm_head, hidden, tokens, temperature, reference_hidden, reference_head, positions)
    log_probs, entropy, *kl = (column.masked_fill(~mask, 0) for column in found)
    return WrittenOutput(log_probs, entropy, hidden, *kl)


def over_vocabulary(
    head: nn.Linear,
    hidden: Tensor,
    tokens: Tensor,
    temperature: float,
    reference_hidden: Tensor | None = None,
    reference_head: nn.Module | None = None,
    positions: int = 0,
) -> list[Tensor]:
    """States (B, A, H) that predict `tokens` (B, A) → log-probabilities, entropies and, with the states of a reference,
    KL, each (B, A).

    In float32, over a chunk of positions at a time, and once more in the backward pass: memory does not grow with
    B·A·V. positions: the largest B·A of all processes, which makes chunks as many on each: under ZeRO-3 every chunk
    gathers the weights of `lm_head`.
    """
    given = [hidden.flatten(0, 1), tokens.flatten()]
    if reference_hidden is not None:
        given.append(reference_hidden.flatten(0, 1))
    heads, parts = (head, reference_head or head), []
    size = max(1, LOGITS_AT_ONCE // head.out_features)  # the weights themselves may be sharded
    chunks = -(-max(positions, tokens.numel()) // size)
    for chunk in zip(*(tensor.tensor_split(chunks) for tensor in given), strict=True):
        if torch.is_grad_enabled():
            kept = {"use_reentrant": False, "preserve_rng_state": False}
            parts.append(checkpoint(_of_chunk, *heads, temperature, *chunk, **kept))
        else:
            parts.append(_of_chunk(*heads, temperature, *chunk))
    return [torch.cat(column).view_as(tokens) for column in zip(*parts, strict=True)]


def _of_chunk(
    head: Callable[..., Tensor],
    reference_head: Callable[..., Tensor],
    temperature: float,
    hidden: Tensor,
    tokens: Tensor,
    reference: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Log-probability, entropy and, with a reference's states, KL of n positions: (n,) each."""
    log_p = _log_softmax(head(hidden), temperature)
    p = log_p.exp()
    found = log_p.gather(-1, tokens[:, None])[:, 0], -(p * log_p).sum(-1)
    if reference is None:
        return found
    with torch.no_grad():
        log_q = _log_softmax(reference_head(reference), temperature)
    return *found, (p * (log_p - log_q)).sum(-1)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """In float32, or what is more precise."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (logits if temperature == 1 else logits / temperature).log_softmax(-1)
