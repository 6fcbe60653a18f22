"""The model card's snippets on a checkpoint folder: only device, dtype and attention differ from a GPU user's."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from inference.visual_inputs import prepare_visual_inputs
from uniar.modeling_decoder import UniARVisualDecoder
from uniar.modeling_uniar import UniARForConditionalGeneration

VARIANTS = ["bsq8", "bsq64"]
ATTENTIONS = ["eager", "sdpa"]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_understanding(golden, variant, attention):
    model_path = str(golden(variant).checkpoint)
    model = UniARForConditionalGeneration.from_pretrained(
        model_path,
        torch_dtype=torch.float32,
        attn_implementation=attention,
    ).eval()
    processor = AutoProcessor.from_pretrained(model_path)
    image = Image.fromarray(golden("bsq8").tensors("processor")["image_0"].numpy())
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": image},
                {"type": "text", "text": "Describe this image in detail."},
            ],
        }
    ]
    inputs = processor.apply_chat_template(
        messages,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    inputs.pop("mm_token_type_ids", None)
    inputs = inputs.to(model.device)
    with torch.no_grad():
        generated_ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    trimmed = [out[len(ids) :] for ids, out in zip(inputs.input_ids, generated_ids, strict=True)]
    text = processor.batch_decode(trimmed, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    expected = golden(variant).tensors("understanding")["generated"]
    assert torch.equal(torch.stack(trimmed), expected)
    assert text == [processor.tokenizer.decode(expected[0], skip_special_tokens=True)]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_generation_and_decoding(golden, variant, attention):
    model_path = str(golden(variant).checkpoint)
    model = UniARForConditionalGeneration.from_pretrained(
        model_path,
        torch_dtype=torch.float32,
        attn_implementation=attention,
    ).eval()
    processor = AutoProcessor.from_pretrained(model_path)
    prompts = golden(variant).params["t2i_prompts"]
    inputs = prepare_visual_inputs(
        prompts,
        model,
        processor,
        ar_height=64,
        ar_width=128,
    )
    visual_ids = model.generate_visual(**inputs, temperature=0, cfg=2.5, show_progress=True)
    assert visual_ids.shape == (2, 8, 4, 4)
    assert visual_ids.dtype == torch.int64
    assert torch.equal(visual_ids, golden(variant).tensors("generate_visual")["t2i_64x128_cfg2.5.indices"])

    visual_decoder = UniARVisualDecoder.from_pretrained(model_path, device="cpu", torch_dtype=torch.float32)
    images = visual_decoder.decode(
        visual_ids,
        ar_height=64,
        ar_width=128,
        upsampling_ratio=2.0 if variant == "bsq8" else 1.0,  # only bsq8's decoder upsamples
        num_inference_steps=2,
        guidance_scale=1.5,
        generator=torch.Generator("cpu").manual_seed(42),
    )
    assert len(images) == len(prompts)
    assert {image.size for image in images} == {(256, 128) if variant == "bsq8" else (128, 64)}
    assert not np.array_equal(*map(np.asarray, images))


def test_editing(golden):
    model_path = str(golden("bsq8").checkpoint)
    model = UniARForConditionalGeneration.from_pretrained(
        model_path,
        torch_dtype=torch.float32,
        attn_implementation="sdpa",
    ).eval()
    processor = AutoProcessor.from_pretrained(model_path)
    image = Image.fromarray(golden("bsq8").tensors("visual_inputs")["edit_64x128.image_0"].numpy())
    inputs = prepare_visual_inputs(
        ["change the color of the car to black"],
        model,
        processor,
        ar_height=64,
        ar_width=128,
        input_images=[image],
    )
    visual_ids = model.generate_visual(**inputs, temperature=0.7, cfg=2.5, show_progress=False)
    assert visual_ids.shape == (1, 8, 4, 4)
    visual_decoder = UniARVisualDecoder.from_pretrained(model_path, device="cpu", torch_dtype=torch.float32)
    images = visual_decoder.decode(visual_ids, ar_height=64, ar_width=128, num_inference_steps=2)
    assert [image.size for image in images] == [(256, 128)]


def test_reading_its_own_drawing_undecoded(golden):
    """The drawn bits stand where an image would, in `forward` and in `generate`."""
    model, processor = golden("bsq8").model(), golden("bsq8").processor
    inputs = prepare_visual_inputs(["two cats"], model, processor, ar_height=64, ar_width=128)
    drawn = model.generate_visual(**inputs, temperature=0, cfg=2.5, return_raw_codes=True)
    message = {
        "role": "user",
        "content": [
            {"type": "image", "image": Image.new("RGB", (128, 64))},
            {"type": "text", "text": "what is shown in this picture?"},
        ],
    }
    asked = processor.apply_chat_template(
        [message], tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    del asked["pixel_values"]  # of the blank stand-in
    with torch.no_grad():
        seen = model(**asked, visual_bits=drawn).logits
        other = model(**asked, visual_bits=1 - drawn).logits
    assert not torch.allclose(seen, other, atol=0.1)
    answer = model.generate(**asked, visual_bits=drawn, max_new_tokens=4, do_sample=False)
    assert torch.equal(answer[0, asked["input_ids"].shape[1]], seen[0, -1].argmax())


def test_auto_classes(golden):
    model = AutoModelForImageTextToText.from_pretrained(golden("bsq8").checkpoint)
    assert isinstance(model, UniARForConditionalGeneration)
