"""`vqa_score` with a tiny random Qwen3-VL, against a plain forward pass a sample."""

import math
import shutil

import pytest
import torch
from support.reference_towers import random_images
from support.tiny_qwen import save_qwen3

from rewards import RewardBatch, RewardError, RewardSuite
from rewards.vqa.yes_no import ANSWERS, QUESTION, Answers, Question, single_tokens, yes_probability
from uniar.errors import UserError

PROMPTS = ["a red square", "two blue circles on a green star", "a red square"]
SIZES = [(64, 64), (96, 64), (64, 64)]
YES, NO = ["Y", "y"], ["N", "n", "no way"]  # the tiny tokenizer has no "Yes"


@pytest.fixture(scope="session")
def qwen(nano_checkpoint, tmp_path_factory):
    return save_qwen3(nano_checkpoint, tmp_path_factory.mktemp("qwen"))


def expected_probabilities(folder, batch, questions, yes, no=None):
    """One sample at a time: no padding, no batch."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    ids = [[processor.tokenizer.convert_tokens_to_ids(token) for token in tokens] for tokens in (yes, no or [])]
    found = []
    for image, question in zip(batch.images, questions, strict=True):
        text = (
            f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{question}<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        with torch.no_grad():
            logits = model(**processor(text=[text], images=[image], return_tensors="pt")).logits[0, -1]
        shares = torch.softmax(logits.double(), dim=0)
        for_it, against_it = (sum(shares[token].item() for token in tokens) for tokens in ids)
        found.append(for_it if no is None else for_it / (for_it + against_it))
    return found


def score(batch, **parameters):
    entry = {"use": "vqa_score", "device": "cpu", "dtype": "float32", "answers": YES, **parameters}
    return RewardSuite.from_recipe([entry]).score(batch)


def test_vqa_score_is_the_probability_of_yes(qwen):
    batch = RewardBatch(PROMPTS, random_images(*SIZES))
    questions = [f'Does this figure show "{prompt}"? Please answer Yes or No.' for prompt in PROMPTS]
    expected = expected_probabilities(qwen, batch, questions, YES)
    assert min(expected) > 0
    assert max(expected) > 1.2 * min(expected)
    table = score(batch, model=str(qwen))
    assert table.values[:, 0].tolist() == pytest.approx(expected, rel=1e-4)
    one_by_one = score(batch, model=str(qwen), batch_size=1)
    assert one_by_one.values[:, 0].tolist() == pytest.approx(expected, rel=1e-4)
    assert [row["question"] for row in table.details["vqa_score"]] == questions
    assert all(isinstance(row["answer"], str) for row in table.details["vqa_score"])


def test_against_other_answers(qwen):
    batch = RewardBatch(PROMPTS[:2], random_images(*SIZES[:2]))
    questions = [f"{prompt}?" for prompt in batch.prompts]
    expected = expected_probabilities(qwen, batch, questions, YES, ["N", "n"])
    found = score(batch, model=str(qwen), question="{prompt}?", against=NO).values[:, 0].tolist()
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_question_takes_metadata(qwen):
    metadata = [{"question": "Is it red?", "n": 1}, {}, {"question": "Is it 50% {blue}?"}]
    batch = RewardBatch(PROMPTS, random_images(*SIZES), metadata=metadata)
    table = score(batch, model=str(qwen), question="{question} {{yes}}")
    asked = ["Is it red? {yes}", "Is it 50% {blue}? {yes}"]
    expected = expected_probabilities(qwen, batch.select([0, 2]), asked, YES)
    assert table.values[[0, 2], 0].tolist() == pytest.approx(expected, rel=1e-4)
    assert math.isnan(table.values[1, 0])
    assert table.failures == {"vqa_score": 0}
    assert table.details["vqa_score"][1] is None


def test_a_prompt_with_a_token_of_the_model_fails_alone(qwen):
    batch = RewardBatch(["a cat", "a <|image_pad|> cat"], random_images((64, 64), (64, 64)))
    with pytest.raises(RewardError, match=r"holds <\|image_pad\|>, which stands for an image.* on sample 1"):
        score(batch, model=str(qwen))
    table = score(batch, model=str(qwen), on_error="skip")
    assert table.failures == {"vqa_score": 1}
    assert not table.values[0].isnan()


def test_half_precision_stays_near(qwen):
    batch = RewardBatch(PROMPTS, random_images(*SIZES))
    exact = score(batch, model=str(qwen)).values
    half = score(batch, model=str(qwen), dtype="bfloat16").values
    assert half.log().flatten().tolist() == pytest.approx(exact.log().flatten().tolist(), abs=0.5)
    assert not torch.equal(half, exact)


def load_error(**parameters):
    with pytest.raises(UserError) as caught:
        RewardSuite.from_recipe([{"use": "vqa_score", "device": "cpu", **parameters}]).load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_work_stops_before_the_first_score(qwen, tmp_path):
    assert "none of which is a single token for this model" in load_error(model=str(qwen), answers=["Yes", " Yes"])
    assert "against is ['Never'], none" in load_error(model=str(qwen), answers=YES, against=["Never"])
    assert f"model '{tmp_path}' cannot be loaded" in load_error(model=str(tmp_path))
    assert "Qwen/Qwen3-VL-4B-Instruct' cannot be loaded" in load_error()
    shutil.copytree(qwen, tmp_path / "torn")
    from safetensors.torch import load_file, save_file

    file = tmp_path / "torn" / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("layers.0.mlp.up_proj.weight"))
    shape = tuple(weights[name].shape)
    wrong = {"is missing from the weights": {}, "has shape (2, 2)": {name: torch.zeros(2, 2)}}
    for fault, changed in wrong.items():
        kept = {key: value for key, value in weights.items() if key != name}
        save_file({**kept, **changed}, file, metadata={"format": "pt"})
        said = load_error(model=str(tmp_path / "torn"), answers=YES)
        assert f"layers.0.mlp.up_proj.weight {fault}; the config makes it {shape}" in said


def test_questions_are_checked_before_anything_is_loaded():
    for wrong in ("{prompt", "{prompt.upper}", "{0}", "{}", "{prompt!r}", "{prompt:>9}"):
        with pytest.raises(UserError, match="question is"):
            Question(wrong)
    assert Question(QUESTION).ask("a {cat}", {}) == 'Does this figure show "a {cat}"? Please answer Yes or No.'
    assert Question("{prompt}").ask("own", {"prompt": "no"}) == "own"
    assert Question("Is it pretty?").ask("p", {}) == "Is it pretty?"


def test_the_default_answers():
    class Words:
        def encode(self, text, add_special_tokens):
            return {"Yes": [7], " Yes": [7], "yes": [9], " yes": [3, 4]}[text]

    assert single_tokens(Words(), ANSWERS, "answers") == [7, 9]


def test_logits_that_are_no_numbers_are_an_error():
    class Words:
        def encode(self, text, add_special_tokens):
            return [0]

        def decode(self, ids):
            return str(ids)

    with pytest.raises(FloatingPointError, match="NaN or an infinity"):
        Answers(Words(), ["Yes"], None).read(torch.tensor([[1.0, math.nan]]))
    scores, said = Answers(Words(), ["Yes"], None).read(torch.tensor([[1.0, -math.inf], [0.0, 0.0]]))
    assert scores == pytest.approx([1.0, 0.5])
    assert said == ["[0]", "[0]"]


def test_probabilities_are_exact_where_they_are_tiny():
    logits = torch.tensor([[0.0, 40.0, -40.0], [1000.0, 0.0, 0.0]], dtype=torch.float64)
    found = yes_probability(logits, [0, 2])
    assert found[0].item() == pytest.approx(math.exp(-40), rel=1e-9)
    assert found[1].item() == 1.0
    assert yes_probability(logits, [0], [2])[0].item() == pytest.approx(1 / (1 + math.exp(-40)))
