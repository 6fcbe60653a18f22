"""The rollout engine: the reference's greedy drawings, the teacher-forced gaps, and samples that nothing else moves."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from uniar import generation
from uniar.configuration_uniar import UniARConfig
from uniar.errors import UserError
from uniar.generation import draw_noise, rollout, sample_bytes
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.processing import (
    VisualPrompt,
    append_drawn_grid,
    append_image_tokens,
    build_visual_prompt,
    drawing_positions,
    prepare_visual_inputs,
)
from uniar.quantizer import bits_to_indices

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
PROMPTS = ["a photo of a red apple on a wooden table", "two cats"]


def close(found, expected, tolerance=1e-4):
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=tolerance)


def golden_inputs(golden, tag):
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


def as_prompt(inputs, guided):
    """The rows of `generate_visual` as the engine takes them."""
    prompt = VisualPrompt(
        inputs["prefix_input_ids"],
        inputs["attention_mask"],
        inputs["pos_ids_all"],
        inputs.get("pixel_values"),
        inputs.get("input_image_grid_thw"),
    )
    if not guided:
        return prompt
    half = len(prompt) // 2
    halves = prompt.rows(range(half)), prompt.rows(range(half, 2 * half))
    return VisualPrompt(**{**vars(halves[0]), "unconditional": halves[1]})


def any_noise(model, prompt, samples, seed=0):
    return draw_noise(range(seed, seed + samples), prompt.image_token_num, model.config.vision_config.code_shape)


def greedy(model, prompt, scale=None):
    noise = any_noise(model, prompt, len(prompt))
    return rollout(model, prompt, noise, guidance_scale=scale, temperature=0, return_gaps=True)


def picture(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def text_prompt(golden, height=64, width=96, prompts=PROMPTS, **settings):
    return build_visual_prompt(prompts, golden.model(), golden.processor, height=height, width=width, **settings)


def edit_prompt(golden):
    images = [picture(64, 64), picture(96, 64, 1)]
    return text_prompt(golden, 64, 64, ["make it blue", "remove the cup from the table"], input_images=images)


# The reference's drawings


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("variant", "tag", "cfg"), DRAWINGS)
def test_golden_drawings(golden, variant, tag, cfg, attention):
    model, inputs = golden(variant).model(attention), golden_inputs(golden(variant), tag)
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
        drawn = greedy(model, as_prompt(inputs, cfg > 1), cfg if cfg > 1 else None)
        gap = drawn.gap_cond if cfg == 1 else drawn.gap_uncond + cfg * (drawn.gap_cond - drawn.gap_uncond)
        logits = stored["logits"].transpose(0, 1)
        close(gap, logits[..., 1] - logits[..., 0])  # at cfg 1 of all rows: they are a prompt like any other
        assert torch.equal(bits_to_indices(drawn.bits), stored["indices"])


@pytest.mark.parametrize("variant", ["bsq8", "bsq64"])
def test_golden_rollout(golden, variant):
    """The reference's RL rollout: conditional rows only."""
    model, stored = golden(variant).model(), golden(variant).tensors("generate_visual")
    ids, mask = stored["rollout_64x128.input_ids"], stored["rollout_64x128.attention_mask"]
    prompt = VisualPrompt(ids, mask, drawing_positions(ids, mask, (2, 4), model))
    assert torch.equal(greedy(model, prompt).bits, stored["rollout_64x128.raw_codes"])
    built = text_prompt(golden(variant), 64, 128)
    assert torch.equal(built.input_ids, ids)
    assert torch.equal(greedy(model, built).bits, stored["rollout_64x128.raw_codes"])


@pytest.mark.parametrize(("dtype", "name", "tolerance"), [(torch.float32, "f32", 1e-4), (torch.bfloat16, "bf16", 0.06)])
@pytest.mark.parametrize(("variant", "tag"), [("bsq8", "t2i_128x128"), ("bsq64", "t2i_64x128")])
def test_golden_first_step(golden, variant, tag, dtype, name, tolerance):
    model, inputs = golden(variant).model(dtype=dtype), golden_inputs(golden(variant), tag)
    raw = []
    hook = model.output_layer_vistok.register_forward_hook(lambda module, args, output: raw.append(output))
    model.generate_visual(**inputs, temperature=0, cfg=2.5)
    hook.remove()
    assert raw[0].dtype == dtype
    assert len(raw) == inputs["image_token_num"]  # the head runs at drawn positions only
    close(raw[0], golden(variant).tensors("generate_visual")[f"{tag}_cfg2.5.{name}_step0_raw_logits"], tolerance)


# Rollout = replay


def replayed_gap(model, branch, bits, owners):
    """Teacher-forced gaps of the drawn bits, rows and positions made anew."""
    rows = branch.rows(owners)
    ids, mask = append_image_tokens(rows.input_ids, rows.attention_mask, bits.shape[1], model.config.image_token_id)
    last = branch.position_ids[1:, 0, -1] - branch.position_ids[1:, 0, -bits.shape[1]] + 1
    grids = append_drawn_grid(rows.image_grid_thw, tuple(last.tolist()), len(ids), 2)
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        image_grid_thw=grids,
        pixel_values=rows.pixel_values,
        online_rollout_codes=bits,
        is_vistok_pred=True,
    ).logits
    return logits[..., 1] - logits[..., 0]


@torch.no_grad()
@pytest.mark.parametrize("variant", ["bsq8", "bsq64", "bsq8_novd"])
@pytest.mark.parametrize("task", ["t2i", "edit"])
def test_rollout_gaps_are_the_teacher_forced_ones(golden, variant, task):
    model = golden(variant).model()
    prompt = text_prompt(golden(variant)) if task == "t2i" else edit_prompt(golden(variant))
    assert len(prompt.unconditional) == (1 if task == "t2i" else 2)
    assert not prompt.attention_mask.all()  # prompts of different lengths
    noise, owners = any_noise(model, prompt, 6), [0, 0, 0, 1, 1, 1]
    drawn = rollout(model, prompt, noise, guidance_scale=2.5, temperature=0.8, return_gaps=True)
    close(drawn.gap_cond, replayed_gap(model, prompt, drawn.bits, owners))
    twins = owners if task == "edit" else [0] * 6
    close(drawn.gap_uncond, replayed_gap(model, prompt.unconditional, drawn.bits, twins))
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


def one_sample_budget(model, prompt):
    """Bytes that hold one sample of a prompt, guided."""
    patches = 0 if prompt.pixel_values is None else len(prompt.pixel_values) // len(prompt)
    return sample_bytes(model, prompt.input_ids.shape[1], prompt.image_token_num, 2, patches)


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
    order, owners = [5, 0, 3, 1, 4, 2], [1, 0, 1, 0, 1, 0]
    for budget in (None, 4 * one_sample_budget(model, prompt)):
        mixed = rollout(model, prompt, noise[order], owners=owners, **settings, memory_budget=budget)
        assert torch.equal(mixed.bits, whole.bits[order])
        close(mixed.gap_uncond, whole.gap_uncond[order])
    for sample, owner in ((1, 0), (5, 1)):
        alone = rollout(model, prompt.rows([owner]), noise[sample : sample + 1], **settings)
        assert torch.equal(alone.bits[0], whole.bits[sample])
    # The same noise under other prompts, or other noise, is another sample.
    assert not torch.equal(rollout(model, prompt, noise, owners=[1, 1, 1, 0, 0, 0], **settings).bits, whole.bits)
    assert not torch.equal(whole.bits[0], whole.bits[1])


def test_each_prefix_is_prefilled_once(golden, monkeypatch):
    model, prompt, prefilled, original = golden("bsq8").model(), text_prompt(golden("bsq8")), [], generation._prefill

    def counting(model, branch):
        prefilled.append(len(branch))
        return original(model, branch)

    monkeypatch.setattr(generation, "_prefill", counting)
    rollout(model, prompt, any_noise(model, prompt, 6), guidance_scale=2.0)
    assert sorted(prefilled) == [1, 2]  # two prompts, one unconditional row
    prefilled.clear()
    rollout(
        model,
        prompt,
        any_noise(model, prompt, 6),
        guidance_scale=2.0,
        memory_budget=3 * one_sample_budget(model, prompt),
    )
    assert prefilled == [1, 1, 1]
    prefilled.clear()
    rollout(model, prompt, any_noise(model, prompt, 3), owners=[1, 1, 1])
    assert prefilled == [1]  # nothing is drawn for the other prompt


# Memory


def peak_bytes(function, path):
    """What torch's CPU allocator holds at most while `function` runs, beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        function()
    trace.export_chrome_trace(str(path))
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    return int(np.cumsum([event["args"]["Bytes"] for event in events]).max())


@pytest.mark.parametrize(("variant", "task", "samples"), [("bsq8", "t2i", 2), ("bsq64", "t2i", 1), ("bsq8", "edit", 1)])
def test_budget_holds(golden, variant, task, samples, tmp_path):
    """Also where every prompt has one sample, so that prefixes weigh most."""
    model = golden(variant).model()
    prompts = [f"number {number} of some apples" for number in range(4)]
    settings = {"input_images": [picture(96, 64, number) for number in range(4)]} if task == "edit" else {}
    prompt = text_prompt(golden(variant), 64, 64, prompts, **settings)
    noise, budget = any_noise(model, prompt, 4), samples * one_sample_budget(model, prompt)

    def draw(memory_budget):
        return rollout(model, prompt, noise, guidance_scale=2.0, return_gaps=True, memory_budget=memory_budget)

    results = sum(tensor.nbytes for tensor in vars(draw(None)).values())
    used = peak_bytes(lambda: draw(budget), tmp_path / "split.json")
    assert used <= budget + 2 * results  # what is returned is collected beside it
    assert used < peak_bytes(lambda: draw(None), tmp_path / "whole.json")


def test_a_budget_below_one_sample(golden):
    model, prompt = golden("bsq8").model(), text_prompt(golden("bsq8"))
    budget = one_sample_budget(model, prompt)
    with pytest.raises(UserError, match=r"one sample's rollout needs 0\.\d MiB .* the memory budget is 0\.\d MiB"):
        rollout(model, prompt, any_noise(model, prompt, 2), guidance_scale=2.0, memory_budget=budget - 1)
    rollout(model, prompt, any_noise(model, prompt, 2), guidance_scale=2.0, memory_budget=budget)


# A step


class Recorder(TorchDispatchMode):
    """Notes every operator with its shapes, and refuses those that make the host wait or depend on the data."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal.", "_to_cpu")

    def __init__(self):
        super().__init__()
        self.operators = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        assert not any(name.startswith(f"aten.{wait}") for wait in self.WAITS), name
        if name.startswith("aten.index."):
            assert all(index is None or index.dtype != torch.bool for index in args[1]), "indexing by a mask"
        output = function(*args, **(kwargs or {}))
        shapes = tuple(tuple(leaf.shape) for leaf in (*args, output) if isinstance(leaf, torch.Tensor))
        self.operators.append((name, shapes))
        return output


@torch.no_grad()
@pytest.mark.parametrize("scale", [None, 2.0])
def test_steps_are_alike_and_the_host_never_waits(golden, scale):
    """What a captured graph needs: the same operators on the same shapes and buffers, whatever the data."""
    model, prompt = golden("bsq8").model(), text_prompt(golden("bsq8"), 64, 128)
    branches = [prompt] if scale is None else [prompt, prompt.unconditional]
    steps = generation._Steps(
        model,
        [generation._prefill(model, branch) for branch in branches],
        torch.tensor([0, 0, 1]),
        any_noise(model, prompt, 3),
        scale,
        1.0,
        keep_gaps=True,
    )
    buffers = [steps.bits, steps.gaps, steps.cursor, *steps.keys, *steps.values]
    places, recorded = [buffer.data_ptr() for buffer in buffers], []
    for _ in range(prompt.image_token_num - 1):
        with Recorder() as recorder:
            steps.sample()
            steps.advance()
        recorded.append(recorder.operators)
    steps.sample()
    assert len(recorded[0]) > 50
    assert all(operators == recorded[0] for operators in recorded)
    assert [buffer.data_ptr() for buffer in buffers] == places
    drawn = rollout(
        model, prompt, any_noise(model, prompt, 3), owners=[0, 0, 1], guidance_scale=scale, return_gaps=True
    )
    assert torch.equal(steps.result().bits, drawn.bits)


def test_the_recorder_sees_a_waiting_host():
    for wait in (lambda x: x.item(), lambda x: bool(x), lambda x: x.nonzero(), lambda x: x[x > 0]):
        with pytest.raises(AssertionError), Recorder():
            wait(torch.ones(1))


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
    noise, edit = any_noise(model, prompt, 2), golden_inputs(golden("bsq8"), "edit_64x128")
    alone = VisualPrompt(**{**vars(prompt), "unconditional": None})
    without_pixels = VisualPrompt(edit["prefix_input_ids"], edit["attention_mask"], edit["pos_ids_all"])
    cases = [
        (prompt, noise[:, :5], {}, r"noise is \(2, 5, 4, 4, 8\); it must be \(2, 6, 4, 4, 8\)"),
        (prompt, noise[..., 0], {}, r"noise is \(2, 6, 4, 4\)"),
        (prompt, noise[:1], {}, "1 samples cannot be divided evenly over 2 prompts"),
        (prompt, noise[:0], {}, "0 samples"),
        (prompt, noise, {"owners": [0, 2]}, r"\[0, 2\]"),
        (prompt, noise, {"owners": [0]}, r"\[0\]"),
        (prompt, noise, {"owners": [-1, 0]}, r"\[-1, 0\]"),
        (prompt, noise, {"temperature": -1}, "temperature is -1"),
        (alone, noise, {"guidance_scale": 2.0}, "unconditional twin"),
        (without_pixels, any_noise(model, without_pixels, 2), {}, "image tokens and came without pixel_values"),
    ]
    for given, uniforms, settings, message in cases:
        with pytest.raises(ValueError, match=message):
            rollout(model, given, uniforms, **settings)
    inputs = golden_inputs(golden("bsq8"), "t2i_64x128")
    odd = {**inputs, "prefix_input_ids": inputs["prefix_input_ids"][:3]}
    with pytest.raises(ValueError, match="3 rows"):
        model.generate_visual(**odd)


def test_a_model_that_cannot_draw_says_so(golden):
    config = UniARConfig.from_pretrained(golden("bsq8_novd").checkpoint)
    config.vistok_pred = False
    model = UniARForConditionalGeneration(config)
    with pytest.raises(UserError, match="vistok_pred false"):
        model.generate_visual(**golden_inputs(golden("bsq8_novd"), "t2i_64x128"))


# Cached = recomputed


@pytest.fixture(scope="module")
def benchmark():
    """benchmarks/rollout.py, which is no part of the package."""
    path = Path(__file__).parents[1] / "benchmarks" / "rollout.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_rollout", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@torch.no_grad()
def test_the_benchmarks_plain_loop_draws_the_same_bits(benchmark):
    """The backbone through transformers' own cache, the visual decoder over the whole sequence at each step."""
    torch.manual_seed(0)
    sizes = benchmark.Sizes(hidden=64, layers=2, decoder_layers=2, height=64, width=96, samples=3, prefix=12)
    model = benchmark.build_model(sizes)
    assert len(model.config.vision_config.deepstack_visual_indexes) > sizes.layers  # no features behind other layers
    _, differ, clear = benchmark.compare(model, sizes, scale=2.0, repeats=1, seed=0)
    assert (differ, clear) == (0, 0)
    prompt = benchmark.build_prompt(model, sizes)
    drawn = rollout(model, prompt, any_noise(model, prompt, 3), guidance_scale=2.0, return_gaps=True)
    close(drawn.gap_cond, replayed_gap(model, prompt, drawn.bits, [0, 1, 2]))
    _, clear = benchmark.plain_rollout(model, prompt, any_noise(model, prompt, 3), 2.0, 1 - drawn.bits)
    assert clear > 1000  # the comparison can fail


def test_the_benchmark_prints_its_table(benchmark, capsys):
    threads = torch.get_num_threads()
    try:
        sizes = ["--hidden", "64", "--layers", "1", "--decoder-layers", "1", "--size", "96", "--rows", "2"]
        benchmark.main([*sizes, "--repeats", "1", "--threads", "1"])  # far too small to be 4 times as fast
    finally:
        torch.set_num_threads(threads)
    table = capsys.readouterr().out
    assert "9 tokens, hidden 64, 1 + 1 layers, 2 rows" in table
    assert "floor of a step, ms" in table
    assert table.rstrip().endswith("(0 beyond rounding)")
