"""`hpsv3` with a tiny random Qwen2-VL, against a plain forward pass per sample and a head in NumPy."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.reference_towers import random_images

from rewards import RewardBatch, RewardSuite
from rewards.models.hpsv3 import TOKEN, HPSv3, present_name, resized
from uniar.errors import UserError

INSTRUCTION = "Say how good this is: {text_prompt}.\n<|Reward|>\nThe end\n"
PROMPTS = ["a red square", "two blue circles", "a red square"]


@pytest.fixture(scope="module")
def published(nano_processor, tmp_path_factory):
    """A base with its processor, and weights in the published form beside it."""
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    folder, tokenizer = tmp_path_factory.mktemp("hpsv3"), nano_processor.tokenizer
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad", "vision_start")}
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2VLConfig(
        text_config={
            **text,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
        },
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 28,
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
    )
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=28),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(patch_size=28),
        chat_template=nano_processor.chat_template,
    )
    processor.save_pretrained(folder)
    config.save_pretrained(folder)
    config.text_config.vocab_size = len(tokenizer) + 1  # as resized for the token of its own
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(config)
    state = {**model.state_dict()}
    for number, shape in ((0, (1024, 32)), (3, (16, 1024)), (5, (2, 16))):
        state[f"rm_head.{number}.weight"], state[f"rm_head.{number}.bias"] = torch.empty(shape), torch.empty(shape[0])
    for name, tensor in state.items():
        state[name] = torch.randn_like(tensor) * (0.2 if tensor.ndim > 1 else 0.1) + (tensor.ndim == 1)
    save_file(state, folder / "HPSv3.safetensors")
    (folder / "instruction.txt").write_text(INSTRUCTION)
    return folder


def suite(folder, **parameters):
    entry = {"use": "hpsv3", "instruction": str(folder / "instruction.txt"), "base": str(folder)}
    entry |= {"weights": str(folder), "device": "cpu", "dtype": "float32"}
    return RewardSuite.from_recipe([{**entry, **parameters}])


def expected(folder, batch):
    """(B, 2), sample by sample, by the whole model and its hidden states, and the head written out."""
    from transformers import AutoProcessor, Qwen2VLConfig, Qwen2VLForConditionalGeneration

    processor, config = AutoProcessor.from_pretrained(folder), Qwen2VLConfig.from_pretrained(folder)
    token = len(processor.tokenizer)
    processor.tokenizer.add_tokens([TOKEN], special_tokens=True)
    config.text_config.vocab_size = token + 1
    state = load_file(folder / "HPSv3.safetensors")
    model = Qwen2VLForConditionalGeneration(config).eval()
    model.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("rm_head")})
    head = {name: tensor.double().numpy() for name, tensor in state.items() if name.startswith("rm_head")}
    found = []
    for prompt, image in zip(batch.prompts, batch.images, strict=True):
        asked = INSTRUCTION.replace("{text_prompt}", prompt)
        text = (
            f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{asked}<|im_end|>\n<|im_start|>assistant\n"
        )
        pixels = image.resize((448, 448) if image.width == image.height else (560, 392), 3)
        inputs = processor(text=[text], images=[pixels], return_tensors="pt")
        with torch.no_grad():
            hidden = model(**inputs, output_hidden_states=True).hidden_states[-1][0]
        (place,) = (inputs["input_ids"][0] == token).nonzero()[:, 0].tolist()
        x = hidden[place].double().numpy()
        for number in (0, 3, 5):
            x = head[f"rm_head.{number}.weight"] @ x + head[f"rm_head.{number}.bias"]
            x = x if number == 5 else np.maximum(x, 0)
        found.append(x)
    return np.array(found)


def test_the_score_is_the_mean_and_the_uncertainty_the_deviation(published):
    batch = RewardBatch(PROMPTS, random_images((64, 64), (96, 64), (64, 64)))
    numbers = expected(published, batch)
    assert np.ptp(numbers[:, 0]) > 1e-3 * abs(numbers[:, 0]).max()
    for batch_size in (1, 8):
        table = suite(published, batch_size=batch_size).score(batch)
        assert table.values[:, 0].tolist() == pytest.approx(numbers[:, 0], rel=1e-4)
        said = [row["uncertainty"] for row in table.details["hpsv3"]]
        assert np.log(said) == pytest.approx(numbers[:, 1], rel=1e-3)


def test_names_of_earlier_transformers_are_understood(published, tmp_path):
    state = load_file(published / "HPSv3.safetensors")
    earlier = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): tensor
        for name, tensor in state.items()
    }
    assert {present_name(name) for name in earlier} == {*state}
    assert {present_name(name) for name in state} == {*state}
    save_file(earlier, tmp_path / "earlier.safetensors")
    batch = RewardBatch(PROMPTS[:1], random_images((64, 64)))
    tables = [
        suite(published, weights=str(path)).score(batch) for path in (tmp_path / "earlier.safetensors", published)
    ]
    assert tables[0].values.item() == pytest.approx(
        tables[1].values.item(), rel=1e-5
    )  # files are mapped where they lie


def test_weights_of_another_model_are_refused_by_name(published, tmp_path):
    state = load_file(published / "HPSv3.safetensors")
    save_file({name: tensor for name, tensor in state.items() if name != "rm_head.3.bias"}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"is not for HPSv3: it lacks 'rm_head\.3\.bias' \(16,\)"):
        suite(published, weights=str(tmp_path / "a.safetensors")).load()
    with pytest.raises(UserError, match="base 'nowhere/nothing' cannot be read"):
        suite(published, base="nowhere/nothing").load()


def test_a_prompt_with_a_token_of_the_models_is_refused(published):
    batch = RewardBatch([f"a {TOKEN}"], random_images((64, 64)))
    with pytest.raises(UserError, match="is a token of the model's own"):
        suite(published).score(batch)


def test_images_have_about_as_many_pixels_whatever_their_size(nano_processor):
    class Processor:
        patch_size, merge_size = 14, 2

    for size, wanted in (((1024, 1024), (448, 448)), ((1280, 704), (588, 308)), ((30, 30), (448, 448))):
        assert resized(random_images(size)[0], Processor()).size == wanted


def test_the_head_keeps_its_weights_in_half_precision_too(published):
    reward = HPSv3(str(published / "instruction.txt"), str(published), str(published), device="cpu")
    reward.load()
    assert {parameter.dtype for parameter in reward._model.model.parameters()} == {torch.bfloat16}
    state = load_file(published / "HPSv3.safetensors")
    for name, parameter in reward._model.rm_head.named_parameters():
        assert torch.equal(parameter, state[f"rm_head.{name}"])


@pytest.mark.parametrize("text", ["{text_prompt}", "<|Reward|>", "{text_prompt} <|Reward|> <|Reward|>", ""])
def test_an_instruction_without_its_marks_is_refused(published, tmp_path, text):
    (tmp_path / "own.txt").write_text(text)
    with pytest.raises(UserError, match=r"own.txt' does not hold \{text_prompt\}, and <\|Reward\|> once"):
        suite(published, instruction=str(tmp_path / "own.txt")).load()
