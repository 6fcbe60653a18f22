"""`geneval2` with a tiny random Qwen3-VL, against a plain forward pass per question."""

import math

import pytest
import torch
from support.reference_towers import random_images
from support.tiny_qwen import save_qwen3

from rewards import RewardBatch, RewardError, RewardSuite
from rewards.vqa.geneval2 import geometric_mean, questions_of, right_answers
from uniar.errors import UserError

QUESTIONS = [
    [["How many dots are there?", "2"], ["Is it red?", "y"]],
    [["Is it blue?", "n"]],
    [],
]


@pytest.fixture(scope="module")
def qwen(nano_checkpoint, tmp_path_factory):
    return save_qwen3(nano_checkpoint, tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def expected(qwen):
    """The probability of each question's right answers, one forward pass each."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(qwen, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(qwen)
    found = []
    for image, questions in zip(random_images((64, 64), (96, 64), (64, 64)), QUESTIONS, strict=True):
        own = []
        for question, answer in questions:
            asked = f"{question} Answer in one word."
            shown = "<|vision_start|><|image_pad|><|vision_end|>"
            text = f"<|im_start|>user\n{shown}{asked}<|im_end|>\n<|im_start|>assistant\n"
            with torch.no_grad():
                logits = model(**processor(text=[text], images=[image], return_tensors="pt")).logits[0, -1]
            shares = torch.softmax(logits.double(), 0)
            vocabulary = processor.tokenizer.get_vocab()  # in which Ġ stands for a space
            forms = {space + form for form in (answer, answer.upper()) for space in ("", "Ġ")}
            own.append(sum(shares[vocabulary[form]].item() for form in forms if form in vocabulary))
        found.append(own)
    return found


def test_the_score_is_the_mean_over_the_questions(qwen, expected):
    metadata = [{"vqa_list": questions} if questions else {} for questions in QUESTIONS]
    batch = RewardBatch(["a", "b", "c"], random_images((64, 64), (96, 64), (64, 64)), metadata=metadata)
    entry = {"use": "geneval2", "model": str(qwen), "device": "cpu", "dtype": "float32"}
    entries = [entry, {**entry, "name": "am", "mean": "arithmetic", "batch_size": 1}]
    table = RewardSuite.from_recipe(entries).score(batch)
    geometric, arithmetic = table.values.T.tolist()
    assert geometric[0] == pytest.approx(math.sqrt(expected[0][0] * expected[0][1]), rel=1e-4)
    assert arithmetic[0] == pytest.approx(sum(expected[0]) / 2, rel=1e-4)
    assert [geometric[1], arithmetic[1]] == pytest.approx(expected[1] * 2, rel=1e-4)
    assert math.isnan(geometric[2])
    first = table.details["geneval2"][0]
    assert first["atoms"] == pytest.approx(expected[0], rel=1e-4)
    assert first["mean"] == pytest.approx(sum(expected[0]) / 2, rel=1e-4)
    weakest = QUESTIONS[0][expected[0].index(min(expected[0]))][0]
    assert first["why"].startswith(f"weakest: {weakest} ")


def test_right_answers_are_words_digits_and_yes():
    assert right_answers("Are there cats?", "Yes") == ["Yes", "yes", " Yes", " yes"]
    count = right_answers("How many cats are in the image?", "three")
    assert set(count) == {"three", " three", "Three", " Three", "3", " 3"}
    assert set(right_answers("What is it?", "three")) == {"three", " three", "Three", " Three"}
    assert geometric_mean([0.5, 0.0]) == 0.0
    assert geometric_mean([0.25, 1.0]) == pytest.approx(0.5)


@pytest.mark.parametrize("wrong", ["Is it red?", [["Is it red?"]], [["Is it red?", 2]], [["", "yes"]]])
def test_questions_of_another_form_are_refused(wrong):
    with pytest.raises(UserError, match=r"a list of pairs \[question, answer\] is needed"):
        questions_of({"vqa_list": wrong})


def test_a_question_with_a_token_of_images_fails_alone(qwen):
    metadata = [{"vqa_list": [["Is <|image_pad|> red?", "y"]]}, {"vqa_list": [["Is it?", "y"]]}]
    batch = RewardBatch(["a", "b"], random_images((64, 64), (64, 64)), metadata=metadata)
    entry = {"use": "geneval2", "model": str(qwen), "device": "cpu", "dtype": "float32"}
    table = RewardSuite.from_recipe([{**entry, "on_error": "skip"}]).score(batch)
    assert table.failed[:, 0].tolist() == [True, False]
    with pytest.raises(RewardError, match="stands for an image's tokens"):
        RewardSuite.from_recipe([entry]).score(batch)
