"""Rows that share a prefix, computed as one: what they have is what each has in a row of its own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rl.algorithm.guidance import GuidanceSettings
from rl.policy.replay import Branch, replay
from rl.policy.turns import Texts
from uniar.conversations import Message, encode_turns
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.processing import build_visual_prompt
from uniar.shared_prefix import SharedPrefixes, fewest_positions

OWNERS = [0, 1, 0, 2, 0, 1, 0, 0, 2, 1, 0]
"""of samples of three prompts, 6, 3 and 2 of them"""
PROMPTS = ["a cat", "a red circle on a large blue table beside a green square", "two dogs"]


@pytest.fixture(params=["eager", "sdpa"])
def model(request, nano_checkpoint: Path):
    """In float64, but for `eager`, whose softmax is in float32."""
    dtype = torch.float32 if request.param == "eager" else torch.float64
    loaded = UniARForConditionalGeneration.from_pretrained(
        nano_checkpoint, dtype=dtype, attn_implementation=request.param
    ).train()
    loaded.set_trainable(text=True)
    return loaded


def pictures(count: int) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in pixels]


def require_same(model: torch.nn.Module, made: Callable[[Branch], Tensor], *branches: Branch | None) -> None:
    """What is `made` of branches, and its gradients, is what is made of rows that share nothing, in fewer positions."""
    positions, found = [], []
    hook = model.model.language_model.layers[0].register_forward_pre_hook(
        lambda _, given: positions.append(given[0].shape[0] * given[0].shape[1])
    )
    alone = [branch and replace(branch, prefixes=None) for branch in branches]
    for given in (branches, alone):
        model.zero_grad()
        output, before = made(*given), len(positions)
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
        found.append((output.detach(), gradients, positions[before - 1]))
    hook.remove()
    (shared, gradients, few), (expected, expected_gradients, many) = found
    assert few < 0.7 * many
    assert torch.allclose(shared, expected, rtol=1e-5, atol=1e-6)  # gaps are float32
    close = 1e-5 if model.dtype == torch.float32 else 1e-6
    assert gradients.keys() == expected_gradients.keys()
    assert len(gradients) > 10
    for name, gradient in gradients.items():
        assert (gradient - expected_gradients[name]).norm() <= close * expected_gradients[name].norm(), name


@pytest.mark.parametrize(("edits", "checkpointed"), [(False, False), (True, False), (True, True)])
def test_drawings_of_a_prompt(model, nano_processor, edits, checkpointed):
    given = {"input_images": pictures(3)} if edits else {}
    prompt = build_visual_prompt(PROMPTS, model, nano_processor, height=64, width=64, unconditional=True, **given)
    branch, twin = (Branch.of(one, OWNERS, model.config.image_token_id) for one in (prompt, prompt.unconditional))
    shape = (len(OWNERS), prompt.new_tokens, *model.config.vision_config.code_shape)
    bits = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    guidance = GuidanceSettings("guided", 2.0)
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    require_same(model, lambda one, other: guidance.policy_gap(replay(model, bits, one, other, guidance)), branch, twin)


def test_texts_of_a_question(model, nano_processor):
    shown = pictures(2)
    turns = [
        [Message("user", (shown[0], "what colour is the circle?"))],
        [Message("user", ("how many?",))],
        [Message("user", (*shown, "which is larger, and where does it stand in the picture?"))],
    ]
    prompt = encode_turns(turns, model, nano_processor, new_tokens=5)
    tokens = torch.randint(5, 90, (len(OWNERS), 5), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(5) < torch.tensor([1, 5, 3, 2, 4, 5, 1, 2, 2, 3, 5])[:, None]
    branch = Branch.before_text(prompt, OWNERS, tokens, mask)
    texts = Texts(tokens, mask, branch, torch.zeros(tokens.shape))

    def made(one: Branch) -> Tensor:
        said = replace(texts, prompt=one).replay(model, 0.8)
        return torch.cat([said.log_probs, said.entropy])

    require_same(model, made, branch)


def test_what_is_packed_comes_back_in_its_order():
    names, width, tail = ["a", "b", "a", "c", "a", "b", "a"], 6, 4
    shared = SharedPrefixes.of(names, width, tail, "cpu")
    rows = torch.arange(7)[:, None] * 100 + torch.arange(width + tail)
    packed = shared.packed(rows[..., None])
    assert packed.shape == (4, width + 2 * tail, 1)
    # The state before a token predicts it, and the last of the prefix is that of the first row of the name.
    expected = rows[:, width - 1 : -1].clone()
    expected[:, 0] = torch.tensor([names.index(name) * 100 + width - 1 for name in names])
    alike = shared.predicting(packed)[..., 0]
    assert alike[:, 1:].equal(expected[:, 1:])
    assert [names[int(number)] for number in alike[:, 0] // 100] == names


@pytest.mark.parametrize(
    ("alike", "width", "tail", "size"),
    [
        ([8, 8], 30, 16, 8),
        ([8, 4], 30, 16, 4),  # three rows of 4, none of them with tails in vain
        ([8, 8, 1], 200, 2, 8),
        ([1, 1, 1], 30, 16, 1),
        ([2, 2], 30, 16, 2),
        ([5, 4], 1, 100, 1),  # what tails in vain cost is more than is shared
    ],
)
def test_as_few_positions_as_can_be(alike, width, tail, size):
    assert fewest_positions(alike, width, tail) == size


def test_rows_that_share_nothing_are_left_as_they_are(nano_model):
    assert SharedPrefixes.of(["a", "b", "c"], 8, 4, "cpu") is None
    ids = torch.zeros(2, 12, dtype=torch.long)
    assert nano_model.shared_prefixes(["a", "a"], ids, 4) is not None
    assert nano_model.shared_prefixes(None, ids, 4) is None
    nano_model.config.text_config._attn_implementation = "flash_attention_2"
    assert nano_model.shared_prefixes(["a", "a"], ids, 4) is None


def test_a_padded_position_is_seen_by_nobody_behind_it():
    shared = SharedPrefixes.of(["a", "a"], 3, 2, "cpu")
    mask = shared.mask(torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 1, 0]]), None)
    assert mask.prefix.int().tolist() == [[[[1, 1, 1], [0, 1, 0], [0, 1, 1]]]]
    assert mask.tail.int().tolist() == [[[[0, 1, 1, 1, 0], [0, 1, 1, 1, 1]]], [[[0, 1, 1, 1, 0], [0, 1, 1, 1, 0]]]]
    added = shared.mask(torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 1, 0]]), torch.float32)
    assert ((added.tail == 0) == mask.tail).all()
