"""How UniAR-Tiny is made: stages of a few steps, from nothing to a checkpoint that loads; interrupted and resumed."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor

from rl.algorithm.guidance import GuidanceSettings
from rl.policy.replay import Branch, replay
from rl.tiny.captions import drawing
from rl.tiny.edits import edit
from rl.tiny.stages import lesson, pool, stage
from rl.tiny.stages.batches import TOKENS, drawing_rows, drawn_gaps
from rl.tiny.stages.learning import encode
from rl.tiny.stages.lesson import Lesson
from rl.tiny.stages.model import SIDE, grids, new_policy, new_sd3, new_vae, new_vision, patches, write_untrained
from rl.tiny.stages.sentences import sentences
from rl.tiny.stages.stage import flip, pictures, randomness
from rl.tiny.stages.vae import train_vae
from rl.tiny.train import STAGES, train
from rl.tiny.world import free_scene, render
from uniar.errors import UserError
from uniar.modeling_decoder import UniARVisualDecoder
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.processing import build_visual_prompt


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "untrained"
    write_untrained(folder, sentences(0, each=400), 0)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """All stages, two steps each."""
    folder = tmp_path_factory.mktemp("tiny") / "trained"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "SIZE", 64)
        train(folder, seed=0, steps=2)
    return folder


def scenes(count: int, seed: int = 0) -> list:
    rng, _ = randomness(seed, "test")
    return [free_scene(rng) for _ in range(count)]


def test_patches_are_laid_out_as_the_image_processor_does(untrained):
    images = [render(scene) for scene in scenes(3)]
    expected = AutoProcessor.from_pretrained(untrained).image_processor(images=images, return_tensors="pt")
    assert torch.allclose(patches(pictures(scenes(3))), expected["pixel_values"], atol=1e-6)
    assert torch.equal(grids(3), expected["image_grid_thw"])


def test_an_image_of_any_size_becomes_sixteen_tokens(untrained):
    processor = AutoProcessor.from_pretrained(untrained)
    for size in ((64, 64), (512, 512), (20, 20)):
        encoded = processor.image_processor(images=[render(scenes(1)[0]).resize(size)], return_tensors="pt")
        assert encoded["image_grid_thw"].tolist() == [[1, SIDE // 8, SIDE // 8]]


def test_rows_of_training_are_the_prompts_that_drawing_starts_from(untrained):
    """The gaps that supervised training sees are those that the rollout and its replay see, edits included."""
    torch.manual_seed(0)
    processor, model = AutoProcessor.from_pretrained(untrained), new_policy(untrained, 0).eval()
    rng, _ = randomness(0, "rows")
    items = [edit(rng, "train") for _ in range(3)]
    bits = encode(model.model.visual, [item.target for item in items])
    given = encode(model.model.visual, [item.source for item in items])
    for editing in (False, True):
        prompts = [item.instruction for item in items] if editing else [drawing(rng, "train").prompt for _ in items]
        images = [render(item.source) for item in items] if editing else None
        prompt = build_visual_prompt(prompts, model, processor, height=SIDE, width=SIDE, input_images=images)
        branch = Branch.of(prompt, range(3), model.config.image_token_id)
        with torch.no_grad():
            expected = replay(model, bits, branch, None, GuidanceSettings("none")).cond
            rows = drawing_rows(model, processor, prompts, editing=editing)
            found = drawn_gaps(model, rows, bits, given if editing else None)
        assert found.shape == (3, TOKENS, *model.config.vision_config.code_shape)
        assert torch.allclose(found, expected, atol=1e-5)


def test_flipped_bits():
    noise = torch.Generator().manual_seed(0)
    bits = torch.zeros(64, TOKENS, 2, 4, 32, dtype=torch.uint8)
    flipped = flip(bits, 0.2, noise)
    assert 0.07 < flipped.float().mean() < 0.13
    assert flipped.dtype == torch.uint8
    assert torch.equal(flip(bits, 0.0, noise), bits)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_texts_of_other_pictures(monkeypatch, share):
    """As many captions, instructions and answers as asked for are wrong; pictures and checks are what they were."""
    made: dict[str, list] = {}

    def remembering(name):
        make = getattr(lesson, name)

        def call(rng, split):
            made.setdefault(name, []).append(item := make(rng, split))
            return item

        return call

    for name in ("drawing", "edit", "check", "question"):
        monkeypatch.setattr(lesson, name, remembering(name))
    spoiled = {"wrong_captions": share, "wrong_instructions": share, "wrong_answers": share}
    of_sixty = Lesson(60, 60, 60, 5, drawing_weight=1.0, redrawings=60, checks=20, no_prompt=0.0, **spoiled)
    for each in (of_sixty, of_sixty.as_examined()):
        made.clear()
        found = each.samples(random.Random(0))
        assert [len(group) for group in (found.drawings, found.edits, found.questions)] == [60, 120, 80]
        assert [scene for _, scene in found.drawings] == [own.scene for own in made["drawing"][:60]]
        pairs = [(own.source, own.target) for own in made["edit"][:60]]
        pairs += [(own.shown, own.redrawn) for own in made["check"][:60]]
        assert [tuple(pair) for _, *pair in found.edits] == pairs
        checks = [(own.shown, own.question, own.found) for own in made["check"][-20:]]
        assert found.questions[60:] == checks
        own_texts = {
            "captions": [own.prompt for own in made["drawing"][:60]],
            "instructions": [own.instruction for own in made["edit"][:60]],
            "redrawings": [own.instruction for own in made["check"][:60]],
            "answers": [own.answer for own in made["question"][:60]],
        }
        texts = {
            "captions": [caption for caption, _ in found.drawings],
            "instructions": [text for text, *_ in found.edits[:60]],
            "redrawings": [text for text, *_ in found.edits[60:]],
            "answers": [answer for *_, answer in found.questions[:60]],
        }
        for name, own in own_texts.items():
            wrong = sum(a != b for a, b in zip(texts[name], own, strict=True))
            if each is not of_sixty or share == 0:
                assert wrong == 0, name
            else:  # some are alike by chance; answers often
                assert 0.5 * share - 0.15 < wrong / 60 <= share + 0.15, name


def test_all_weights_stay_under_14_megabytes(untrained):
    modules = [new_policy(untrained, 0), new_vision(0), new_sd3(), new_vae()]
    weights = sum(2 * parameter.numel() for module in modules for parameter in module.parameters())
    assert weights + sum(file.stat().st_size for file in untrained.rglob("*.safetensors")) <= 14e6


def test_two_steps_of_each_stage_make_a_checkpoint(trained):
    assert list(json.loads((trained / "stages.json").read_text())) == list(STAGES)
    logged = [json.loads(line) for line in (trained / "training.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in logged} == set(STAGES)

    model = UniARForConditionalGeneration.from_pretrained(trained, dtype=torch.float32)
    decoder = UniARVisualDecoder.from_pretrained(trained)
    for name, tensor in decoder.bsq_encoder.state_dict().items():
        assert torch.equal(tensor, model.model.visual.state_dict()[name]), name
    assert not [file for file in trained.rglob("config.json") if str(trained) in file.read_text()]
    bits = encode(decoder.bsq_encoder, scenes(2))
    images = decoder.decode(bits, SIDE, SIDE, num_inference_steps=2, noise_seeds=[0, 1])
    assert [image.size for image in images] == [(SIDE, SIDE)] * 2
    assert decoder.prompt_embeds.shape[1] == 6
    assert sum(file.stat().st_size for file in trained.rglob("*.safetensors") if ".training" not in file.parts) < 14e6


def test_a_finished_stage_is_not_run_again(trained, capsys):
    before = (trained / "training.jsonl").read_text()
    train(trained, seed=0, stage="policy", steps=2)
    assert (trained / "training.jsonl").read_text() == before
    assert "policy: done" in capsys.readouterr().out


def test_a_stage_without_the_ones_before_it_is_refused(tmp_path):
    with pytest.raises(UserError, match="stage policy needs stage tokenizer"):
        train(tmp_path / "new", seed=0, stage="policy")
    command = [sys.executable, "-m", "rl.tiny.train", "--output", str(tmp_path / "new"), "--stage", "decoder"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert ended.returncode == 2
    assert "error: stage decoder needs stage vae" in ended.stderr


def test_stages_of_another_version_are_refused(tmp_path):
    """A folder whose last stage was another one would end up half of each."""
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "stages.json").write_text(json.dumps({"policy": {}, "captions": {}}))
    with pytest.raises(UserError, match="has stage captions, which another version ran; train into a new folder"):
        train(folder, seed=0)
    for broken in ("{", "[]"):
        (folder / "stages.json").write_text(broken)
        with pytest.raises(UserError, match=r"stages\.json"):
            train(folder, seed=0)


def test_an_interrupted_stage_ends_with_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "SAVE_SECONDS", 0.0)  # after every step
    whole = train_vae(tmp_path / "whole", seed=3, steps=6)

    class Cut(Exception):
        pass

    update = stage.Stage.update

    def cut_short(stage, loss, **parts):
        if stage.step == 4:
            raise Cut
        update(stage, loss, **parts)

    with monkeypatch.context() as patch:
        patch.setattr(stage.Stage, "update", cut_short)
        with pytest.raises(Cut):
            train_vae(tmp_path / "cut", seed=3, steps=6)
    assert train_vae(tmp_path / "cut", seed=3, steps=6) == whole
    name = Path("sd3_pipeline/vae/diffusion_pytorch_model.safetensors")
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_loss_that_is_no_number_ends_the_stage(tmp_path):
    model = torch.nn.Linear(1, 1)
    broken = stage.Stage("broken", tmp_path, model, steps=3, learning_rate=1.0, seed=0)
    for _ in broken:
        with pytest.raises(FloatingPointError, match="stage broken: the loss of step 0 is nan"):
            broken.update(model(torch.tensor([[float("nan")]])).sum())
        break
