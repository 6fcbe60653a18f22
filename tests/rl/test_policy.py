"""What is drawn and what is replayed must be one policy (docs/architecture.md, "Numbers that must agree")."""

import dataclasses

import pytest
import torch
from PIL import Image
from support.played import drawn

from rl.algorithm.guidance import GuidanceSettings
from rl.data.prompts import PromptRecord
from rl.episodes.registry import Episodes
from rl.policy.samples import DrawSettings, Sample
from rl.policy.turns import joined
from rl.scoring.decoding import decode
from uniar.conversations import Drawing

RECORDS = [PromptRecord("a red circle", id="a"), PromptRecord("two blue squares on a green background", id="b")]
SAMPLES = [Sample(record, index) for record in RECORDS for index in range(3)]
SETTINGS = DrawSettings(
    height=64,
    width=64,
    temperature=1.0,
    guidance_scale=2.5,
    upsampling_ratio=1.0,
    num_inference_steps=2,
    decoder_guidance_scale=1.0,
    decode_batch_size=4,
    seed=5,
)


@pytest.mark.parametrize(
    ("convention", "scale"), [("none", None), ("guided", 2.5), ("guided_detach", 2.5), ("conditional", 2.5)]
)
def test_replayed_gaps_are_the_rollouts(nano_model, nano_processor, convention, scale):
    settings = dataclasses.replace(SETTINGS, guidance_scale=scale)
    rows = drawn(nano_model, nano_processor, SAMPLES, settings)
    gaps = rows.replay(nano_model, GuidanceSettings(convention))
    assert torch.allclose(gaps.cond, rows.drawn.cond, atol=1e-4)
    if convention in ("guided", "guided_detach"):
        assert torch.allclose(gaps.uncond, rows.drawn.uncond, atol=1e-4)
    else:
        assert gaps.uncond is None


def test_replayed_gaps_are_the_rollouts_when_editing(nano_model, nano_processor, tmp_path):
    records = []
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (80, 48), colour).save(tmp_path / f"{number}.png")
        records.append(PromptRecord(f"make it {colour}", image=str(tmp_path / f"{number}.png"), id=str(number)))
    samples = [Sample(record, index) for record in records for index in range(2)]
    rows = drawn(nano_model, nano_processor, samples, SETTINGS)
    gaps = rows.replay(nano_model, GuidanceSettings("guided"))
    assert torch.allclose(gaps.cond, rows.drawn.cond, atol=1e-4)
    assert torch.allclose(gaps.uncond, rows.drawn.uncond, atol=1e-4)


def test_which_branch_carries_the_gradient(nano_model, nano_processor):
    nano_model.set_trainable()
    rows = drawn(nano_model, nano_processor, SAMPLES, SETTINGS)
    guided = rows.replay(nano_model, GuidanceSettings("guided"))
    detached = rows.replay(nano_model, GuidanceSettings("guided_detach"))
    assert guided.cond.requires_grad
    assert guided.uncond.requires_grad
    assert detached.cond.requires_grad
    assert not detached.uncond.requires_grad


def test_rows_are_replayed_in_any_order(nano_model, nano_processor):
    rows = drawn(nano_model, nano_processor, SAMPLES, SETTINGS)
    guidance, order = GuidanceSettings("guided"), [4, 1, 0, 5, 2, 3]
    shuffled = joined([rows.row(number) for number in order])
    assert torch.allclose(
        rows.replay(nano_model, guidance).cond[order], shuffled.replay(nano_model, guidance).cond, atol=1e-5
    )
    assert shuffled.old is shuffled.reference is None


def test_a_sample_is_the_same_whoever_is_drawn_beside_it(nano_model, nano_processor):
    together = drawn(nano_model, nano_processor, SAMPLES, SETTINGS, step=3).bits
    reverse = drawn(nano_model, nano_processor, SAMPLES[::-1], SETTINGS, step=3).bits.flip(0)
    halves = [drawn(nano_model, nano_processor, half, SETTINGS, step=3).bits for half in (SAMPLES[:2], SAMPLES[2:])]
    assert torch.equal(together, reverse)
    assert torch.equal(together, torch.cat(halves))
    assert not torch.equal(together, drawn(nano_model, nano_processor, SAMPLES, SETTINGS, step=4).bits)
    assert not torch.equal(together[0], together[1])


def test_a_group_shares_its_decoder_noise(nano_model, nano_processor, nano_decoder):
    bits = drawn(nano_model, nano_processor, SAMPLES[:1], SETTINGS).bits.repeat(2, 1, 1, 1, 1)
    pair, drawings = SAMPLES[:2], [Drawing(one, 2) for one in bits]
    first, second = decode(nano_decoder, drawings, pair, SETTINGS)
    assert first.tobytes() == second.tobytes()
    own = dataclasses.replace(SETTINGS, same_noise_per_group=False)
    first, second = decode(nano_decoder, drawings, pair, own)
    assert first.tobytes() != second.tobytes()


def test_prompts_to_draw_and_to_edit_are_one_batch(nano_model, nano_processor, tmp_path):
    Image.new("RGB", (64, 96), "red").save(tmp_path / "a.png")
    edit = PromptRecord("make it blue", image=str(tmp_path / "a.png"), id="edit")
    samples = [Sample(RECORDS[0], 0), Sample(edit, 0), Sample(RECORDS[1], 1), Sample(edit, 1)]
    rows = drawn(nano_model, nano_processor, samples, SETTINGS, step=3)
    alone = [drawn(nano_model, nano_processor, [sample], SETTINGS, step=3).bits for sample in samples]
    assert torch.equal(rows.bits, torch.cat(alone))
    assert [len(bits) for bits in rows.prompt.visual_bits] == [0, 4, 0, 4]
    for convention in ("guided", "guided_detach"):
        for size in (4, 1):  # one has rows of both kinds, the others have one kind or the other
            parts = [joined([rows.row(n) for n in range(start, start + size)]) for start in range(0, 4, size)]
            gaps = torch.cat([part.replay(nano_model, GuidanceSettings(convention)).cond for part in parts])
            assert torch.allclose(gaps, rows.drawn.cond, atol=1e-4)


def test_processes_with_and_without_pictures_run_the_same_modules(nano_model, nano_processor, tmp_path):
    """Under ZeRO-3 each module that runs gathers its weights, which takes every process."""
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    edit, ran = PromptRecord("make it blue", image=str(tmp_path / "a.png"), id="edit"), []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in nano_model.named_modules()
    ]
    found = []
    for record in (RECORDS[0], edit):
        rows = drawn(nano_model, nano_processor, [Sample(record, 0)], SETTINGS)
        ran.clear()
        rows.replay(nano_model, GuidanceSettings("guided"))
        found.append(list(ran))
    for hook in hooks:
        hook.remove()
    assert found[0] == found[1]
    assert any(name.startswith("model.visual") for name in found[0])


def test_images_depend_on_episodes_sizes_and_texts_only_where_there_are_some():
    """So images that were drawn before there were any are taken for what they are."""
    plain = SETTINGS.of_images()
    assert plain.keys().isdisjoint({"episodes", "sizes", "text_temperature", "max_new_tokens"})
    longer = dataclasses.replace(SETTINGS, max_new_tokens=9)
    assert longer.of_images() == plain
    found = dataclasses.replace(longer, episodes=Episodes({"story": "think_draw"}), sizes=[(64, 32, 1.0)]).of_images()
    assert found["max_new_tokens"] == 9
    assert found["episodes"] == {"default": "draw", "story": "think_draw"}
    assert found["sizes"] == [[64, 32, 1.0]]
