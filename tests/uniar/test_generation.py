"""The rollout engine: the reference's greedy drawings, the teacher-forced gaps, and samples that nothing else moves."""

import pytest
import torch
from support.golden_inputs import (
    PROMPTS,
    any_noise,
    close,
    edit_prompt,
    one_sample_budget,
    picture,
    replayed_gap,
    text_prompt,
)

from uniar.configuration_uniar import UniARConfig
from uniar.errors import UserError
from uniar.generation import draw_noise, rollout
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.processing import prepare_visual_inputs
from uniar.quantizer import bits_to_indices
from uniar.turn_prompt import TurnPrompt, drawing_positions

DRAWINGS = [
    ("bsq8", "t2i_128x128", 1.0),
    ("bsq8", "t2i_128x128", 2.5),
    ("bsq8", "t2i_64x128", 2.5),
    ("bsq8", "edit_64x128", 1.0),
    ("bsq8", "edit_64x128", 2.5),
    ("bsq64", "t2i_64x64", 1.0),
    ("bsq64", "t2i_64x128", 2.5),
    ("bsq64", "edit_64x64", 1.0),
    ("bsq64", "edit_64x64", 2.5),
]


def reference_inputs(golden, tag):
    """What the reference's `prepare_visual_inputs` returned, with the pixels that its model saw."""
    stored = {
        name.removeprefix(f"{tag}."): value
        for name, value in golden.tensors("visual_inputs").items()
        if name.startswith(tag)
    }
    names = ("prefix_input_ids", "attention_mask", "pos_ids_all", "pos_ids_image")
    inputs = {name: stored[name] for name in names} | {"image_token_num": stored["pos_ids_image"].shape[-1]}
    if tag.startswith("edit"):
        pixels = golden.pixels("visual_inputs", f"{tag}.")
        inputs["pixel_values"] = torch.cat([pixels, pixels])
        inputs["input_image_grid_thw"] = stored["input_image_grid_thw"]
    return inputs


def as_prompt(model, inputs, guided):
    """The rows of `generate_visual` as the engine takes them."""
    ids, bits, counts = (
        inputs["prefix_input_ids"],
        None,
        (inputs["prefix_input_ids"] == model.config.image_token_id).sum(1),
    )
    if "pixel_values" in inputs:
        with torch.no_grad():
            bits = model.model.visual.encode(inputs["pixel_values"], inputs["input_image_grid_thw"])
    prompt = TurnPrompt(ids, inputs["attention_mask"], inputs["pos_ids_all"], bits, tuple(counts.tolist()))
    if not guided:
        return prompt
    half = len(prompt) // 2
    halves = prompt.rows(range(half)), prompt.rows(range(half, 2 * half))
    return TurnPrompt(**{**vars(halves[0]), "unconditional": halves[1]})


def greedy(model, prompt, scale=None):
    noise = any_noise(model, prompt, len(prompt))
    return rollout(model, prompt, noise, guidance_scale=scale, temperature=0, return_gaps=True)


# The reference's drawings


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("variant", "tag", "cfg"), DRAWINGS)
def test_golden_drawings(golden, variant, tag, cfg, attention):
    model, inputs = golden(variant).model(attention), reference_inputs(golden(variant), tag)
    stored = {
        name.split(".")[-1]: value
        for name, value in golden(variant).tensors("generate_visual").items()
        if name.startswith(f"{tag}_cfg{cfg}.")
    }
    rows = len(inputs["prefix_input_ids"]) // 2
    found = model.generate_visual(**inputs, temperature=0, cfg=cfg)
    assert found.dtype == torch.int64
    assert torch.equal(found, stored["indices"][:rows])  # at cfg ≤ 1 the reference draws the unconditional rows too
    bits = model.generate_visual(**inputs, temperature=0, cfg=cfg, return_raw_codes=True)
    assert torch.equal(bits_to_indices(bits), found)
    if "raw_codes" in stored:
        assert torch.equal(bits, stored["raw_codes"][:rows])
    if "logits" in stored:
        drawn = greedy(model, as_prompt(model, inputs, cfg > 1), cfg if cfg > 1 else None)
        gap = drawn.gap_cond if cfg == 1 else drawn.gap_uncond + cfg * (drawn.gap_cond - drawn.gap_uncond)
        logits = stored["logits"].transpose(0, 1)
        close(gap, logits[..., 1] - logits[..., 0])  # at cfg 1 of all rows: they are a prompt like any other
        assert torch.equal(bits_to_indices(drawn.bits), stored["indices"])


@pytest.mark.parametrize("variant", ["bsq8", "bsq64"])
def test_golden_rollout(golden, variant):
    """The reference's RL rollout: conditional rows only."""
    model, stored = golden(variant).model(), golden(variant).tensors("generate_visual")
    ids, mask = stored["rollout_64x128.input_ids"], stored["rollout_64x128.attention_mask"]
    prompt = TurnPrompt(ids, mask, drawing_positions(ids, mask, (2, 4), model))
    assert torch.equal(greedy(model, prompt).bits, stored["rollout_64x128.raw_codes"])
    built = text_prompt(golden(variant), 64, 128)
    assert torch.equal(built.input_ids, ids)
    assert torch.equal(greedy(model, built).bits, stored["rollout_64x128.raw_codes"])


@pytest.mark.parametrize(("dtype", "name", "tolerance"), [(torch.float32, "f32", 1e-4), (torch.bfloat16, "bf16", 0.06)])
@pytest.mark.parametrize(("variant", "tag"), [("bsq8", "t2i_128x128"), ("bsq64", "t2i_64x128")])
def test_golden_first_step(golden, variant, tag, dtype, name, tolerance):
    model, inputs = golden(variant).model(dtype=dtype), reference_inputs(golden(variant), tag)
    raw = []
    hook = model.output_layer_vistok.register_forward_hook(lambda module, args, output: raw.append(output))
    model.generate_visual(**inputs, temperature=0, cfg=2.5)
    hook.remove()
    assert raw[0].dtype == torch.float32  # whatever the weights are: what is drawn is a difference of two
    assert len(raw) == inputs["image_token_num"]  # the head runs at drawn positions only
    close(raw[0], golden(variant).tensors("generate_visual")[f"{tag}_cfg2.5.{name}_step0_raw_logits"], tolerance)


# Rollout = replay


@torch.no_grad()
@pytest.mark.parametrize("variant", ["bsq8", "bsq64", "bsq8_novd"])
@pytest.mark.parametrize("task", ["t2i", "edit"])
def test_rollout_gaps_are_the_teacher_forced_ones(golden, variant, task):
    model = golden(variant).model()
    prompt = text_prompt(golden(variant)) if task == "t2i" else edit_prompt(golden(variant))
    assert len(prompt.unconditional) == (1 if task == "t2i" else 2)
    assert not prompt.attention_mask.all()  # prompts of different lengths
    noise, prompt_index = any_noise(model, prompt, 6), [0, 0, 0, 1, 1, 1]
    drawn = rollout(model, prompt, noise, guidance_scale=2.5, temperature=0.8, return_gaps=True)
    close(drawn.gap_cond, replayed_gap(model, prompt, drawn.bits, prompt_index))
    unconditional = prompt_index if task == "edit" else [0] * 6
    close(drawn.gap_uncond, replayed_gap(model, prompt.unconditional, drawn.bits, unconditional))
    guided = (drawn.gap_uncond + 2.5 * (drawn.gap_cond - drawn.gap_uncond)).double() / 0.8
    assert torch.equal(drawn.bits, (guided.sigmoid() > noise.double()).to(torch.uint8))
    assert drawn.gap_cond.dtype == drawn.gap_uncond.dtype == torch.float32


@torch.no_grad()
def test_rollout_gaps_of_one_branch(golden):
    model, prompt = golden("bsq8").model(), text_prompt(golden("bsq8"))
    noise = any_noise(model, prompt, 4)
    drawn = rollout(model, prompt, noise, return_gaps=True)
    close(drawn.gap_cond, replayed_gap(model, prompt, drawn.bits, [0, 0, 1, 1]))
    assert drawn.gap_uncond is None
    # s = 1 is the conditional branch: u + 1·(c - u).
    guided = rollout(model, prompt, noise, guidance_scale=1.0)
    assert torch.equal(guided.bits, drawn.bits)
    assert guided.gap_cond is None


def test_greedy_is_temperature_zero(golden):
    model, prompt = golden("bsq8").model(), text_prompt(golden("bsq8"))
    settings = {"guidance_scale": 2.0, "return_gaps": True}
    noise = any_noise(model, prompt, 2)
    cold = rollout(model, prompt, noise, temperature=0, **settings)
    guided = cold.gap_uncond + 2.0 * (cold.gap_cond - cold.gap_uncond)
    assert torch.equal(cold.bits, (guided > 0).to(torch.uint8))
    assert torch.equal(rollout(model, prompt, noise, temperature=1e-6, **settings).bits, cold.bits)
    for edge in (torch.zeros_like(noise), torch.ones_like(noise)):
        assert torch.equal(rollout(model, prompt, edge, temperature=0, **settings).bits, cold.bits)
    hot = rollout(model, prompt, noise, temperature=1, **settings)
    assert not torch.equal(hot.bits, cold.bits)


def test_bits_come_as_often_as_they_should(golden):
    """First token, 400 samples: frequencies against σ(d*/T), within five standard errors."""
    model, prompt = golden("bsq8").model(), text_prompt(golden("bsq8"), 32, 32, PROMPTS[:1])
    drawn = rollout(model, prompt, any_noise(model, prompt, 400), guidance_scale=2.0, temperature=0.7, return_gaps=True)
    gap = drawn.gap_uncond + 2.0 * (drawn.gap_cond - drawn.gap_uncond)
    p = torch.sigmoid(gap[0] / 0.7)
    error = (drawn.bits.float().mean(0) - p) / (p * (1 - p) / 400).sqrt()
    assert error.abs().max() < 5
    assert error.std() == pytest.approx(1, abs=0.25)


# Nobody's neighbours matter


def test_noise_belongs_to_its_seed():
    both = draw_noise([7, 8], 3, (2, 4, 5))
    assert both.shape == (2, 3, 2, 4, 5)
    assert both.dtype == torch.float32
    assert torch.equal(both[1:], draw_noise([8], 3, (2, 4, 5)))
    assert not torch.equal(both[0], both[1])


@pytest.mark.parametrize("task", ["t2i", "edit"])
def test_batches_and_neighbours_change_nothing(golden, task):
    model = golden("bsq8").model()
    prompt = text_prompt(golden("bsq8")) if task == "t2i" else edit_prompt(golden("bsq8"))
    noise, settings = any_noise(model, prompt, 6), {"guidance_scale": 2.0, "return_gaps": True}
    whole = rollout(model, prompt, noise, **settings)
    for samples in (1, 2, 4):
        split = rollout(model, prompt, noise, **settings, memory_budget=samples * one_sample_budget(model, prompt))
        assert torch.equal(split.bits, whole.bits)
        close(split.gap_cond, whole.gap_cond)
        close(split.gap_uncond, whole.gap_uncond)
    # Another order of samples, and a batch that ends inside both prompts' samples.
    order, prompt_index = [5, 0, 3, 1, 4, 2], [1, 0, 1, 0, 1, 0]
    for budget in (None, 4 * one_sample_budget(model, prompt)):
        mixed = rollout(model, prompt, noise[order], prompt_index=prompt_index, **settings, memory_budget=budget)
        assert torch.equal(mixed.bits, whole.bits[order])
        close(mixed.gap_uncond, whole.gap_uncond[order])
    for sample, owner in ((1, 0), (5, 1)):
        alone = rollout(model, prompt.rows([owner]), noise[sample : sample + 1], **settings)
        assert torch.equal(alone.bits[0], whole.bits[sample])
    # The same noise under other prompts, or other noise, is another sample.
    assert not torch.equal(rollout(model, prompt, noise, prompt_index=[1, 1, 1, 0, 0, 0], **settings).bits, whole.bits)
    assert not torch.equal(whole.bits[0], whole.bits[1])


def test_drawing_and_editing_in_one_batch(golden):
    """Rows with no picture, with one and with two; the unconditional branch has a row for each."""
    model = golden("bsq8").model()
    prompts, images = ["two cats", "make it blue", "put one beside the other"], [picture(64, 96), picture(96, 64, 1)]
    given = [None, images[0], images]
    both = text_prompt(golden("bsq8"), 64, 64, prompts, input_images=given)
    assert both.image_tokens == (0, 6, 12)
    assert len(both.unconditional) == 3
    noise, settings = any_noise(model, both, 6), {"guidance_scale": 2.0, "return_gaps": True}
    owners = [2, 0, 1, 1, 0, 2]
    for budget in (None, 2 * one_sample_budget(model, both)):
        drawn = rollout(model, both, noise, prompt_index=owners, **settings, memory_budget=budget)
        for number in range(3):
            alone = text_prompt(golden("bsq8"), 64, 64, [prompts[number]], input_images=[given[number]])
            mine = [sample for sample, owner in enumerate(owners) if owner == number]
            assert torch.equal(rollout(model, alone, noise[mine], **settings).bits, drawn.bits[mine])
    with torch.no_grad():
        close(drawn.gap_cond, replayed_gap(model, both, drawn.bits, owners))
        close(drawn.gap_uncond, replayed_gap(model, both.unconditional, drawn.bits, owners))


# Calls


def test_the_snippets_call(golden):
    model, processor = golden("bsq8").model(), golden("bsq8").processor
    inputs = prepare_visual_inputs(PROMPTS, model, processor, ar_height=64, ar_width=96)

    def draw(seed, **settings):
        settings = {"temperature": 0.9, "cfg": 2.0} | settings
        return model.generate_visual(**inputs, **settings, generator=torch.Generator().manual_seed(seed))

    found = draw(3)
    assert found.shape == (2, 6, 4, 4)
    assert torch.equal(found, draw(3))
    assert not torch.equal(found, draw(4))
    prompt = text_prompt(golden("bsq8"))
    noise = torch.rand(2, 6, 4, 4, 8, generator=torch.Generator().manual_seed(3))
    direct = rollout(model, prompt, noise, guidance_scale=2.0, temperature=0.9)
    assert torch.equal(bits_to_indices(direct.bits), found)
    assert torch.equal(draw(3, return_raw_codes=True), direct.bits)
    alone = rollout(model, prompt, noise, temperature=0.9)
    for cfg in (0.0, 1.0):
        assert torch.equal(draw(3, cfg=cfg, return_raw_codes=True), alone.bits)
    assert torch.equal(draw(3, memory_budget=one_sample_budget(model, prompt) * 3 // 2), found)
    # Without a generator torch's own, which the user may seed.
    torch.manual_seed(5)
    first = model.generate_visual(**inputs)
    torch.manual_seed(5)
    assert torch.equal(model.generate_visual(**inputs), first)


def test_progress_bar_on_request(golden, capsys):
    model, prompt = golden("bsq8").model(), text_prompt(golden("bsq8"))
    noise = any_noise(model, prompt, 2)
    rollout(model, prompt, noise)
    assert "visual tokens" not in capsys.readouterr().err
    rollout(model, prompt, noise, show_progress=True)
    assert "visual tokens: 100%" in capsys.readouterr().err


def test_drawing_leaves_the_model_as_it_was(golden):
    """Also a model in training: no dropout, no gradient, no mode changed."""
    model, prompt = golden("bsq8").model(), text_prompt(golden("bsq8"))
    noise = any_noise(model, prompt, 2)
    expected = rollout(model, prompt, noise).bits
    model.train()
    try:
        drawn = rollout(model, prompt, noise, return_gaps=True)
        assert model.training
    finally:
        model.eval()
    assert torch.equal(drawn.bits, expected)
    assert not drawn.gap_cond.requires_grad


def test_wrong_calls_are_refused(golden):
    model, prompt = golden("bsq8").model(), text_prompt(golden("bsq8"))
    noise, edit = any_noise(model, prompt, 2), reference_inputs(golden("bsq8"), "edit_64x128")
    alone = TurnPrompt(**{**vars(prompt), "unconditional": None})
    without_bits = TurnPrompt(edit["prefix_input_ids"], edit["attention_mask"], edit["pos_ids_all"])
    cases = [
        (prompt, noise[:, :5], {}, r"noise is \(2, 5, 4, 4, 8\); it must be \(2, 6, 4, 4, 8\)"),
        (prompt, noise[..., 0], {}, r"noise is \(2, 6, 4, 4\)"),
        (prompt, noise[:1], {}, "1 samples cannot be divided evenly over 2 prompts"),
        (prompt, noise[:0], {}, "0 samples"),
        (prompt, noise, {"prompt_index": [0, 2]}, r"\[0, 2\]"),
        (prompt, noise, {"prompt_index": [0]}, r"\[0\]"),
        (prompt, noise, {"prompt_index": [-1, 0]}, r"\[-1, 0\]"),
        (prompt, noise, {"temperature": -1}, "temperature is -1"),
        (alone, noise, {"guidance_scale": 2.0}, "unconditional branch"),
        (without_bits, any_noise(model, without_bits, 2), {}, "image tokens and came without visual bits"),
    ]
    for given, uniforms, settings, message in cases:
        with pytest.raises(ValueError, match=message):
            rollout(model, given, uniforms, **settings)
    inputs = reference_inputs(golden("bsq8"), "t2i_64x128")
    odd = {**inputs, "prefix_input_ids": inputs["prefix_input_ids"][:3]}
    with pytest.raises(ValueError, match="3 rows"):
        model.generate_visual(**odd)


def test_a_model_that_cannot_draw_says_so(golden):
    config = UniARConfig.from_pretrained(golden("bsq8_novd").checkpoint)
    config.vistok_pred = False
    model = UniARForConditionalGeneration(config)
    with pytest.raises(UserError, match="vistok_pred false"):
        model.generate_visual(**reference_inputs(golden("bsq8_novd"), "t2i_64x128"))


def test_a_progress_bar_changes_no_bit(golden, monkeypatch):
    """Each of its updates says that the bar was drawn, as those do that come late enough after the last."""
    model, prompt = golden("bsq8").model(), text_prompt(golden("bsq8"))
    noise = any_noise(model, prompt, 4)
    plain = rollout(model, prompt, noise).bits
    monkeypatch.setattr("uniar.generation.tqdm.update", lambda self, n=1: True)
    assert torch.equal(rollout(model, prompt, noise, show_progress=True).bits, plain)
