"""Questions about pictures: encoded, answered, and the probability of given answers."""

import pytest
import torch
from PIL import Image

from uniar.answering import answer, answer_ids, answer_log_probs, encode_exchange
from uniar.conversations import Drawing
from uniar.errors import UserError

IMAGES = [Image.new("RGB", (64, 64), "red"), Image.new("RGB", (96, 64), "blue"), Image.new("RGB", (64, 128), "green")]
QUESTIONS = ["What is in this image?", "Is it blue? Answer yes or no.", "Describe the picture in detail."]
ANSWERS = ["a red square", "yes", "one green line next to a small house"]


def card_inputs(processor, image, question, answered=None):
    """As the model card's snippet asks, with the answer behind it."""
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    inputs.pop("mm_token_type_ids", None)
    if answered is not None:
        ids = processor.tokenizer(f"{answered}<|im_end|>", return_tensors="pt")["input_ids"]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs


def test_answers_are_those_of_the_model_cards_snippet(nano_model, nano_processor):
    expected = []
    for image, question in zip(IMAGES, QUESTIONS, strict=True):
        inputs = card_inputs(nano_processor, image, question)
        output = nano_model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        expected += nano_processor.batch_decode(output, skip_special_tokens=True)
    assert answer(nano_model, nano_processor, IMAGES, QUESTIONS, max_new_tokens=5) == expected
    assert len(set(expected)) > 1


def test_log_probs_are_those_of_a_plain_forward(nano_model, nano_processor):
    found = answer_log_probs(nano_model, nano_processor, IMAGES, QUESTIONS, ANSWERS)
    for image, question, text, log_probs in zip(IMAGES, QUESTIONS, ANSWERS, found, strict=True):
        inputs = card_inputs(nano_processor, image, question, text)
        with torch.no_grad():
            logits = nano_model(**inputs).logits[0].double()
        ids, count = inputs["input_ids"][0], len(log_probs)
        expected = [torch.log_softmax(logits[place - 1], 0)[ids[place]] for place in range(len(ids) - count, len(ids))]
        assert count == len(answer_ids(nano_processor, text)) > 1
        assert ids[-1] == nano_processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert torch.allclose(log_probs.double(), torch.stack(expected), atol=1e-4)


def test_probabilities_of_all_answers_of_one_token_are_those_of_the_next_token(nano_model, nano_processor):
    """What the model may say next sums to one, and each share is that of the answer's first token."""
    words = ["yes", "no", "red"]
    ids = [answer_ids(nano_processor, word)[0] for word in words]
    inputs = card_inputs(nano_processor, IMAGES[0], QUESTIONS[1])
    with torch.no_grad():
        probabilities = nano_model(**inputs).logits[0, -1].softmax(0)
    found = answer_log_probs(nano_model, nano_processor, IMAGES[:1] * 3, QUESTIONS[1:2] * 3, words)
    assert torch.allclose(torch.stack([log_probs[0] for log_probs in found]).exp(), probabilities[ids], atol=1e-5)


def test_its_own_drawings_are_read_from_their_bits(nano_model, nano_processor):
    """Bits of an image say to the language model what the image does; neighbours of other sizes change nothing."""
    vision = nano_model.config.vision_config
    drawings = []
    for image in IMAGES:
        encoded = nano_processor.image_processor(images=[image], return_tensors="pt")
        with torch.no_grad():
            bits = nano_model.model.visual.encode(encoded["pixel_values"], encoded["image_grid_thw"])
        drawings.append(Drawing(bits, int(encoded["image_grid_thw"][0, 1]) // vision.spatial_merge_size))
    assert [len(drawing.bits) // drawing.rows for drawing in drawings] == [2, 3, 2]
    from_images = answer_log_probs(nano_model, nano_processor, IMAGES, QUESTIONS, ANSWERS)
    from_bits = answer_log_probs(nano_model, nano_processor, drawings, QUESTIONS, ANSWERS)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(from_images, from_bits, strict=True))
    said = [
        answer(nano_model, nano_processor, pictures, QUESTIONS, max_new_tokens=4) for pictures in (IMAGES, drawings)
    ]
    assert said[0] == said[1]
    flipped = [Drawing(1 - drawing.bits, drawing.rows) for drawing in drawings]
    other = answer_log_probs(nano_model, nano_processor, flipped, QUESTIONS, ANSWERS)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(from_bits, other, strict=True))


def test_what_cannot_be_asked(nano_model, nano_processor):
    config = nano_model.config
    with pytest.raises(UserError, match=r"contains <\|image_pad\|>, which has a meaning of its own"):
        encode_exchange(nano_processor, config, IMAGES[:1], ["what is <|image_pad|>"])
    with pytest.raises(UserError, match="has a meaning of its own"):
        encode_exchange(nano_processor, config, IMAGES[:1], ["what"], ["<|video_pad|>"])
    bits = torch.zeros(4, *config.vision_config.code_shape, dtype=torch.uint8)
    with pytest.raises(ValueError, match="one batch"):
        encode_exchange(nano_processor, config, [IMAGES[0], Drawing(bits, 2)], ["what", "what"])
    with pytest.raises(UserError, match="4 visual tokens do not fill 3 rows"):
        encode_exchange(nano_processor, config, [Drawing(bits, 3)], ["what"])
