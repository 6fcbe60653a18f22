"""Prompts and images → prefix ids, masks and rotary positions, against the reference's vectors."""

import numpy as np
import pytest
import torch
from PIL import Image

from inference.visual_inputs import prepare_visual_inputs
from uniar.errors import UserError
from uniar.processing import build_visual_prompt, check_size

CASES = [
    ("bsq8", "t2i_128x128"),
    ("bsq8", "t2i_64x128"),
    ("bsq8", "edit_64x128"),
    ("bsq64", "t2i_64x64"),
    ("bsq64", "t2i_64x128"),
    ("bsq64", "edit_64x64"),
    ("bsq8_novd", "t2i_64x128"),
    ("bsq8_novd", "edit_64x128"),
]


def picture(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def bsq8(golden):
    return golden("bsq8").model(), golden("bsq8").processor


@pytest.mark.parametrize("number", range(3))
def test_image_processor(golden, number):
    vectors = golden("bsq8").tensors("processor")
    image = Image.fromarray(vectors[f"image_{number}"].numpy())
    found = golden("bsq8").processor.image_processor([image], return_tensors="pt")
    assert torch.equal(found["image_grid_thw"], vectors[f"image_{number}_grid_thw"])
    if number:
        torch.testing.assert_close(found["pixel_values"], golden("bsq8").pixels("processor", f"image_{number}_"))
    else:  # not resized: patches of 16×16, four of a token together, two equal frames
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().sub(127.5).div(127.5)
        blocks = pixels.view(3, 3, 2, 16, 3, 2, 16).permute(1, 4, 2, 5, 0, 3, 6).reshape(36, 3, 1, 16, 16)
        torch.testing.assert_close(found["pixel_values"], blocks.expand(-1, -1, 2, -1, -1).reshape(36, -1))


def test_tokenizer(golden):
    tokenizer = golden("bsq8").processor.tokenizer
    assert len(tokenizer) == golden("bsq8").params["tokenizer_len"]
    for case in golden("bsq8").params["tokenizer"]:
        assert tokenizer(case["text"]).input_ids == case["ids"]
    for token, number in golden("bsq8").params["special_ids"].items():
        assert tokenizer.convert_tokens_to_ids(token) == number


def test_template(golden):
    vectors, processor = golden("bsq8").tensors("understanding"), golden("bsq8").processor
    case = golden("bsq8").params["understanding"]
    conversations = []
    for image, message in zip(["image_0", "image_b1"], case["messages"], strict=True):
        pixels = (vectors if image == "image_b1" else golden("bsq8").tensors("processor"))[image].numpy()
        content = [
            {"type": "image", "image": Image.fromarray(pixels)},
            {"type": "text", "text": message["text"]},
        ]
        conversations.append([{"role": "user", "content": content}])
    text = processor.apply_chat_template(conversations[0], tokenize=False, add_generation_prompt=True)
    assert text == case["text_b0"]
    settings = {"tokenize": True, "add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
    found = processor.apply_chat_template(conversations[0], **settings)
    for name in ("input_ids", "attention_mask", "image_grid_thw"):
        assert torch.equal(found[name], vectors[name])
    batch = processor.apply_chat_template(
        conversations, **settings, processor_kwargs={"padding": True, "padding_side": "left"}
    )
    for name in ("input_ids", "attention_mask", "image_grid_thw"):
        assert torch.equal(batch[name], vectors[f"batch_{name}"])


@pytest.mark.parametrize(("variant", "tag"), CASES)
def test_golden_visual_inputs(golden, variant, tag):
    task, size = tag.split("_")
    height, width = map(int, size.split("x"))
    expected = {
        name.removeprefix(f"{tag}."): value
        for name, value in golden(variant).tensors("visual_inputs").items()
        if name.startswith(tag)
    }
    rows = len(expected["prefix_input_ids"]) // 2
    prompts, images = golden(variant).params[f"{task}_prompts"][:rows], None
    if task == "edit":
        images = [Image.fromarray(expected[f"image_{number}"].numpy()) for number in range(rows)]
    found = prepare_visual_inputs(
        prompts, golden(variant).model(), golden(variant).processor, height, width, input_images=images
    )
    keys = {"prefix_input_ids", "attention_mask", "pos_ids_all", "pos_ids_image", "image_token_num"}
    assert set(found) == keys | ({"pixel_values", "input_image_grid_thw"} if images else set())
    for name in ("prefix_input_ids", "attention_mask", "pos_ids_image"):
        assert torch.equal(found[name], expected[name])
    assert found["image_token_num"] == height * width // 32**2
    mask = torch.cat([expected["attention_mask"], torch.ones(2 * rows, found["image_token_num"])], 1).bool()
    assert torch.equal(found["pos_ids_all"][:, mask], expected["pos_ids_all"][:, mask])
    if images:
        # The reference resizes twice (docs/checkpoint-format.md, 9), to the same grid here.
        assert torch.equal(found["input_image_grid_thw"], expected["input_image_grid_thw"])
        assert found["pixel_values"].shape == (2 * len(expected["pixel_values_u8"]), 1536)
        assert torch.equal(*found["pixel_values"].chunk(2))


def test_prompt_is_the_half_of_the_snippets_rows(bsq8):
    model, processor = bsq8
    prompts = ["a photo of a red apple on a wooden table", "two cats", ""]
    prompt = build_visual_prompt(prompts, model, processor, height=64, width=96)
    inputs = prepare_visual_inputs(prompts, model, processor, ar_height=64, ar_width=96)
    assert len(prompt) == 3
    assert prompt.new_tokens == inputs["image_token_num"] == 6
    assert torch.equal(prompt.input_ids, inputs["prefix_input_ids"][:3])
    assert torch.equal(prompt.position_ids, inputs["pos_ids_all"][:, :3])
    # Without images one unconditional row, unpadded, serves all.
    unconditional = prompt.unconditional
    assert len(unconditional) == 1
    assert unconditional.attention_mask.all()
    assert unconditional.input_ids.shape[1] < prompt.input_ids.shape[1]
    for row in range(3, 6):
        width = unconditional.input_ids.shape[1]
        assert torch.equal(inputs["prefix_input_ids"][row, -width:], unconditional.input_ids[0])
        assert torch.equal(inputs["pos_ids_all"][:, row, -width - 6 :], unconditional.position_ids[:, 0])
    # An empty prompt is the unconditional one.
    assert torch.equal(prompt.input_ids[2][prompt.attention_mask[2].bool()], unconditional.input_ids[0])
    assert (
        build_visual_prompt(prompts, model, processor, height=64, width=96, unconditional=False).unconditional is None
    )


def test_drawn_grid_follows_the_prefix(bsq8):
    model, processor = bsq8
    prompt = build_visual_prompt(["two cats", "a cat and a dog"], model, processor, height=64, width=96)
    for row in range(2):
        length = int(prompt.attention_mask[row].sum())
        steps = prompt.position_ids[:, row, -6:] - length
        assert steps.tolist() == [[0] * 6, [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]]


def test_images_of_several_sizes_and_several_a_prompt(bsq8):
    """Positions and bits of each row are those of the row alone."""
    model, processor = bsq8
    images = [[picture(64, 96), picture(96, 64, 1)], [picture(128, 64, 2), picture(64, 64, 3)]]
    prompts = ["swap them", "put the second one beside the first"]
    both = build_visual_prompt(prompts, model, processor, height=64, width=64, input_images=images)
    assert both.image_tokens == both.unconditional.image_tokens == (12, 12)
    bits = both.pictures()
    for row in range(2):
        alone = build_visual_prompt(
            prompts[row : row + 1], model, processor, height=64, width=64, input_images=images[row : row + 1]
        )
        for name, half in (("conditional", alone), ("unconditional", alone.unconditional)):
            whole = both if name == "conditional" else both.unconditional
            width = half.input_ids.shape[1]
            assert torch.equal(whole.input_ids[row, -width:], half.input_ids[0])
            assert torch.equal(whole.position_ids[:, row, -width - 4 :], half.position_ids[:, 0])
        assert torch.equal(bits[row], alone.visual_bits)
    # Only the text is dropped from the unconditional branch.
    assert torch.equal(both.unconditional.visual_bits, both.visual_bits)
    kept = (both.unconditional.input_ids == model.config.image_token_id).sum(1)
    assert torch.equal(kept, (both.input_ids == model.config.image_token_id).sum(1))


def test_one_image_is_a_list_of_one(bsq8):
    model, processor = bsq8
    settings = {"height": 64, "width": 64}
    plain = build_visual_prompt(["a"], model, processor, **settings, input_images=[picture(64, 64)])
    listed = build_visual_prompt(["a"], model, processor, **settings, input_images=[[picture(64, 64)]])
    grey = build_visual_prompt(["a"], model, processor, **settings, input_images=[picture(64, 64).convert("L")])
    assert torch.equal(plain.visual_bits, listed.visual_bits)
    assert grey.visual_bits.shape == plain.visual_bits.shape


def test_to_moves_both_branches(bsq8):
    model, processor = bsq8
    prompt = build_visual_prompt(["a"], model, processor, height=64, width=64, input_images=[picture(64, 64)])
    moved = prompt.to("meta")
    for half in (moved, moved.unconditional):
        for name in ("input_ids", "attention_mask", "position_ids", "visual_bits"):
            assert getattr(half, name).is_meta
    assert moved.new_tokens == prompt.new_tokens


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [
        (100, 64, r"height 100 .* 32 .* 96 and 128"),
        (64, 31, r"width 31 .* 32 and 64"),
        (0, 64, r"height 0 .* 32 and 64"),
        (-32, 64, r"height -32"),
    ],
)
def test_sizes_that_do_not_fit(height, width, message):
    check_size(64, 32, 32)
    with pytest.raises(UserError, match=message):
        check_size(height, width, 32)
    with pytest.raises(UserError, match=rf"^rollout\.{message}"):
        check_size(height, width, 32, "rollout.")


def test_bad_input(bsq8):
    model, processor = bsq8
    image = picture(64, 64)
    cases = [
        ([], {}, "no prompts"),
        (["a"], {"height": 65}, "height 65"),
        (["a", "b"], {"input_images": [image]}, "2 prompts came with 1 input images"),
        (["a <|image_pad|>"], {}, r"<\|image_pad\|>"),
        (["a <|video_pad|>"], {"input_images": [image]}, r"<\|video_pad\|>"),
    ]
    for prompts, settings, message in cases:
        with pytest.raises(UserError, match=message):
            build_visual_prompt(prompts, model, processor, **{"height": 64, "width": 64} | settings)
