"""Presets: complete, reproducible checkpoint folders whose images depend on their bits."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, AutoTokenizer

from benchmarks import small_preset  # noqa: F401 (it makes the preset known)
from uniar.decoder_parts import DECODER_PROMPT
from uniar.errors import UserError
from uniar.modeling_decoder import UniARVisualDecoder
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.presets import build as presets
from uniar.presets.build import PRESETS, build_preset, preset_path
from uniar.presets.processor import SPECIAL_TOKENS, corpus, train_tokenizer
from uniar.presets.weights import centre_rows, randomize

GOLDEN = Path(__file__).parents[1] / "golden" / "bsq8" / "ckpt"


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def random_bits(decoder: UniARVisualDecoder, samples: int, tokens: int) -> torch.Tensor:
    shape = (samples, tokens, *decoder.bsq_encoder.config.code_shape)
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_folder_has_the_layout_that_transformers_4_wrote(nano_checkpoint: Path) -> None:
    written = set(files(nano_checkpoint))
    expected = set(files(GOLDEN)) - {"sd3_pipeline/tokenizer_3/spiece.model"}  # tokenizer.json holds the same
    assert written - {presets.STAMP_FILE} == expected
    assert sum(len(content) for content in files(nano_checkpoint).values()) < 6e6


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "bsq_encoder/config.json",
        "sd3_transformer/config.json",
        "sd3_pipeline/model_index.json",
        "sd3_pipeline/vae/config.json",
        "sd3_pipeline/scheduler/scheduler_config.json",
        "sd3_pipeline/tokenizer/tokenizer_config.json",
        "tokenizer_config.json",
    ],
)
def test_configs_have_the_keys_that_transformers_4_wrote(nano_checkpoint: Path, name: str) -> None:
    written, golden = (json.loads((folder / name).read_text()) for folder in (nano_checkpoint, GOLDEN))
    assert golden.keys() <= written.keys()
    for section in ("text_config", "vision_config"):
        assert golden.get(section, {}).keys() <= written.get(section, {}).keys()
    for key in ("_class_name", "architectures", "model_type", "tokenizer_class", "processor_class"):
        assert written.get(key) == golden.get(key)


def test_same_seed_same_bytes_other_seed_other_weights(nano_checkpoint: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)  # whatever the state, the weights are those of the seed
    before = torch.get_rng_state()
    again = files(build_preset("nano", tmp_path / "again"))
    assert torch.equal(torch.get_rng_state(), before)
    assert again == files(nano_checkpoint)

    other = files(build_preset("nano", tmp_path / "other", seed=1))
    changed = {name for name in again if other[name] != again[name]}
    assert changed == {name for name in again if name.endswith(".safetensors")} | {presets.STAMP_FILE}


def test_both_copies_of_the_vision_tower_are_the_same(nano_checkpoint: Path) -> None:
    encoder = load_file(nano_checkpoint / "bsq_encoder" / "model.safetensors")
    model = load_file(nano_checkpoint / "model.safetensors")
    assert {name for name in model if name.startswith("model.visual.")} == {f"model.visual.{name}" for name in encoder}
    assert all(torch.equal(model[f"model.visual.{name}"], tensor) for name, tensor in encoder.items())


@pytest.mark.parametrize("guidance_scale", [1.0, 1.5])
def test_images_are_colourful_and_depend_on_the_bits(nano_decoder: UniARVisualDecoder, guidance_scale: float) -> None:
    bits = random_bits(nano_decoder, 16, 4)
    pixels = 255 * nano_decoder.decode(
        bits, 64, 64, 1.0, num_inference_steps=4, guidance_scale=guidance_scale, noise_seeds=[0] * 16, output_type="pt"
    )
    assert pixels.shape == (16, 3, 64, 64)
    assert pixels.std() > 40
    assert ((pixels < 1) | (pixels > 254)).float().mean() < 0.4
    assert (pixels[:8] - pixels[8:]).abs().mean() > 40
    mean_colour = pixels.mean((2, 3))
    assert (mean_colour.std(0) > 8).all()  # what a reward such as redness can tell rollouts apart by


def test_other_noise_changes_an_image_less_than_other_bits(nano_decoder: UniARVisualDecoder) -> None:
    bits = random_bits(nano_decoder, 16, 4)
    first, second = (
        nano_decoder.decode(
            bits, 64, 64, 1.0, num_inference_steps=4, guidance_scale=1.0, noise_seeds=[seed] * 16, output_type="pt"
        )
        for seed in (0, 1)
    )
    assert (first - second).abs().mean() < 0.75 * (first[:8] - first[8:]).abs().mean()


def test_the_prompt_moves_the_bits(nano_model: UniARForConditionalGeneration, nano_processor) -> None:
    from uniar.generation import draw_noise, rollout
    from uniar.processing import build_visual_prompt

    prompt = build_visual_prompt(["a red circle", "a blue circle"], nano_model, nano_processor, height=64, width=64)
    noise = draw_noise([0, 0], 4, nano_model.config.vision_config.code_shape)
    gaps = rollout(nano_model, prompt, noise, return_gaps=True).gap_cond[:, 0]  # the first token: same past
    assert 0.4 < gaps.std() < 1.0
    assert (gaps[0] - gaps[1]).std() > 0.05


def test_an_image_becomes_varied_bits(nano_checkpoint: Path, nano_processor, nano_decoder: UniARVisualDecoder) -> None:
    pictures = [Image.linear_gradient("L").convert("RGB").resize((64, 64)), Image.new("RGB", (64, 64), (200, 30, 30))]
    inputs = nano_processor.image_processor(pictures, return_tensors="pt")
    bits = nano_decoder.bsq_encoder.encode(inputs["pixel_values"], inputs["image_grid_thw"])
    assert bits.shape == (8, *nano_decoder.bsq_encoder.config.code_shape)
    assert 0.3 < bits.float().mean() < 0.7
    assert (bits[:4] != bits[4:]).float().mean() > 0.1


def test_a_question_about_an_image_gives_text_logits(nano_model: UniARForConditionalGeneration, nano_processor) -> None:
    content = [{"type": "image", "image": Image.new("RGB", (64, 64))}, {"type": "text", "text": "What is this?"}]
    inputs = nano_processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    logits = nano_model(**inputs).logits
    assert logits.shape == (*inputs["input_ids"].shape, 512)
    assert 0.5 < logits[0, -1].std() < 2  # neither uniform nor stuck on one token
    assert nano_model.generation_config.eos_token_id == [
        nano_processor.tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")
    ]


@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_chat_template_writes_what_the_reference_template_writes(nano_processor, add_generation_prompt: bool) -> None:
    reference = AutoProcessor.from_pretrained(GOLDEN)
    image = {"type": "image", "image": "picture.png"}
    chats = [
        [{"role": "user", "content": "a red circle"}],
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": ""}, image, {"type": "text", "text": "<image_gen> 2 2"}],
            }
        ],
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [image, {"type": "video", "video": "v"}, {"type": "text", "text": " x\n"}]},
            {"role": "assistant", "content": "\n yes "},
            {"role": "user", "content": [{"type": "image_url", "image_url": "u"}]},
        ],
    ]
    for chat in chats:
        own, expected = (
            processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=add_generation_prompt)
            for processor in (nano_processor, reference)
        )
        assert own == expected


def test_tokenizer_keeps_any_text_and_knows_the_special_tokens(nano_processor) -> None:
    tokenizer = nano_processor.tokenizer
    for text in ("a red circle", "<image_gen> generate image 16 32", "Ünïcode ✓ 漢字\n\ttabs  and   spaces"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
    assert len(tokenizer("a red circle")["input_ids"]) <= 4
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == list(range(498, 512))
    assert tokenizer("<|vision_start|><|image_pad|>")["input_ids"] == [507, 510]


def test_a_vocabulary_that_the_sentences_cannot_fill_is_an_error() -> None:
    with pytest.raises(ValueError, match="not the 100000 asked for"):
        train_tokenizer(100_000, corpus())


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_clip_tokenizers_hold_the_decoder_prompt(nano_checkpoint: Path, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(nano_checkpoint / "sd3_pipeline" / name)
    ids = tokenizer(DECODER_PROMPT)["input_ids"]
    assert len(ids) == len(DECODER_PROMPT.split()) + 3 <= tokenizer.model_max_length  # the full stop, start and end
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    config = json.loads(
        (nano_checkpoint / "sd3_pipeline" / name.replace("tokenizer", "text_encoder") / "config.json").read_text()
    )
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"], config["vocab_size"]) == (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        len(tokenizer),
    )


def test_t5_tokenizer_holds_the_decoder_prompt(nano_checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(nano_checkpoint / "sd3_pipeline" / "tokenizer_3")
    ids = tokenizer(DECODER_PROMPT)["input_ids"]
    assert len(ids) == len(DECODER_PROMPT.split()) + 1
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == DECODER_PROMPT


def test_small_has_the_sizes_that_the_rollout_benchmark_asks_for(tmp_path: Path) -> None:
    folder = build_preset("small", tmp_path / "small")
    config = UniARForConditionalGeneration.from_pretrained(folder).config
    text, vision = config.text_config, config.vision_config
    assert (text.hidden_size, text.num_hidden_layers, config.visual_transformer_decoder_depth) == (256, 8, 4)
    assert (vision.pixels_per_token, vision.levels) == (32, 4)
    decoder = UniARVisualDecoder.from_pretrained(folder)
    (image,) = decoder.decode(random_bits(decoder, 1, 2), 32, 64, 1.0, num_inference_steps=1, noise_seeds=[0])
    assert image.size == (64, 32)
    assert decoder.output_size(512, 512, 1.0) == (512, 512)


def test_preset_path_builds_once_and_again_when_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(presets.CACHE_VARIABLE, str(tmp_path / "cache"))
    folder = preset_path("nano", 3)
    assert folder == tmp_path / "cache" / "nano-3"
    weights = folder / "model.safetensors"
    built = weights.read_bytes()

    weights.write_bytes(b"touched")
    assert preset_path("nano", 3) == folder
    assert weights.read_bytes() == b"touched"  # not built a second time

    (folder / presets.STAMP_FILE).write_text('{"seed": 3, "sha256": "of an older version"}')
    assert preset_path("nano", 3) == folder
    assert weights.read_bytes() == built

    assert preset_path("nano", 3, tmp_path / "own") == tmp_path / "own" / "nano-3"


def test_default_cache_is_models_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(presets.CACHE_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    assert preset_path("nano").resolve() == tmp_path / "models" / "nano-0"


@pytest.mark.parametrize("call", [lambda folder: preset_path("nanoo"), lambda folder: build_preset("nanoo", folder)])
def test_unknown_preset_names_the_nearest(tmp_path: Path, call) -> None:
    with pytest.raises(UserError, match=r"no preset 'nanoo'; there are nano, small\. Did you mean 'nano'\?"):
        call(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_folder_with_content_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nano-0").mkdir()
    (tmp_path / "nano-0" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="nano-0 already exists"):
        build_preset("nano", tmp_path / "nano-0")
    with pytest.raises(UserError, match="nano-0 already exists"):
        preset_path("nano", 0, tmp_path)
    assert (tmp_path / "nano-0" / "notes.txt").read_text() == "mine"


def test_an_interrupted_build_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(presets, "write_decoder", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_preset("nano", tmp_path / "nano")
    assert list(tmp_path.iterdir()) == []


def test_every_preset_has_a_consistent_geometry() -> None:
    for preset in PRESETS.values():
        assert preset.image_size % (preset.patch_size * 2) == 0
        assert preset.text_layers >= len(preset.deepstack)  # deepstack features are added after the first text layers
        assert max(preset.deepstack) < preset.vision_depth
        factor = 2 ** (len(preset.decoder.vae_channels) - 1)
        assert preset.decoder.max_side * factor * 2 >= 2 * preset.image_size  # the largest upsampling ratio


def test_randomize_depends_on_seed_part_and_name_alone() -> None:
    def weights(seed: int, part: str, **gains: float) -> dict[str, torch.Tensor]:
        module = torch.nn.ModuleDict({"a": torch.nn.Linear(400, 300), "e": torch.nn.Embedding(300, 400)})
        randomize(module, seed, part, gains)
        return module.state_dict()

    first = weights(0, "x")
    assert all(torch.equal(first[name], tensor) for name, tensor in weights(0, "x").items())
    assert not torch.equal(first["a.weight"], weights(1, "x")["a.weight"])
    assert not torch.equal(first["a.weight"], weights(0, "y")["a.weight"])
    assert first["a.bias"].abs().max() == 0
    assert first["a.weight"].std() == pytest.approx(1 / 20, rel=0.02)  # 1/√fan_in
    assert first["e.weight"].std() == pytest.approx(1, rel=0.02)
    assert weights(0, "x", a=3.0)["a.weight"].std() == pytest.approx(3 / 20, rel=0.02)
    with pytest.raises(ValueError, match=r"no parameter of x has \['typo'\] in its name"):
        weights(0, "x", typo=2.0)


def test_centred_rows_sum_to_zero() -> None:
    weight = torch.randn(3, 4, 2, 2)
    centre_rows(weight)
    assert weight.flatten(1).sum(1).abs().max() < 1e-5
    assert weight.std() > 0.5
