"""What a rollout costs: prefills, memory, steps that a graph could capture; and the plain loop it is measured with."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.golden_inputs import any_noise, close, one_sample_budget, picture, replayed_gap, text_prompt
from torch.nn.functional import logsigmoid
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from uniar import generation
from uniar.engine.prefix import prefill
from uniar.engine.steps import Steps
from uniar.errors import UserError
from uniar.generation import rollout


def test_each_prefix_is_prefilled_once(golden, monkeypatch):
    model, prompt, prefilled, original = golden("bsq8").model(), text_prompt(golden("bsq8")), [], prefill

    def counting(model, branch):
        prefilled.append(len(branch))
        return original(model, branch)

    monkeypatch.setattr(generation, "prefill", counting)
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
    rollout(model, prompt, any_noise(model, prompt, 3), prompt_index=[1, 1, 1])
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


def begun(model, prompt, scale):
    """The engine's state for three samples, before its first step."""
    return Steps(
        model,
        [prefill(model, branch) for branch in ([prompt] if scale is None else [prompt, prompt.unconditional])],
        torch.tensor([0, 0, 1]),
        any_noise(model, prompt, 3),
        scale,
        1.0,
        keep_gaps=True,
    )


def buffers(steps):
    """Where each tensor of the state lies."""
    lists = {name: value if isinstance(value, list) else [value] for name, value in vars(steps).items()}
    tensors = [(name, value) for name, values in lists.items() for value in values if isinstance(value, torch.Tensor)]
    assert {"hidden", "bits", "gaps", "cursor", "keys", "values"} <= {name for name, _ in tensors}
    return [(name, tensor.data_ptr(), tensor.shape, tensor.dtype) for name, tensor in tensors]


@torch.no_grad()
@pytest.mark.parametrize("scale", [None, 2.0])
def test_steps_are_alike_and_the_host_never_waits(golden, scale):
    """What a captured graph needs: the same operators on the same shapes and buffers, whatever the data."""
    model, prompt = golden("bsq8").model(), text_prompt(golden("bsq8"), 64, 128)
    steps = begun(model, prompt, scale)
    steps.step()  # as before a graph is captured
    places, recorded = buffers(steps), []
    for _ in range(prompt.new_tokens - 2):
        with Recorder() as recorder:
            steps.step()
        recorded.append(recorder.operators)
    steps.sample()
    assert len(recorded[0]) > 50
    assert all(operators == recorded[0] for operators in recorded)
    assert buffers(steps) == places
    drawn = rollout(
        model, prompt, any_noise(model, prompt, 3), prompt_index=[0, 0, 1], guidance_scale=scale, return_gaps=True
    )
    assert torch.equal(steps.result().bits, drawn.bits)


def test_the_recorder_sees_a_waiting_host():
    for wait in (lambda x: x.item(), lambda x: bool(x), lambda x: x.nonzero(), lambda x: x[x > 0]):
        with pytest.raises(AssertionError), Recorder():
            wait(torch.ones(1))


# Cached = recomputed


@pytest.fixture(scope="module")
def benchmark():
    """benchmarks/rollout.py, which is not part of the package."""
    path = Path(__file__).parents[2] / "benchmarks" / "rollout.py"
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


@torch.no_grad()
def test_half_precision_at_the_released_depth(benchmark):
    """36 + 4 layers in bfloat16: how far log π of replay and rollout are apart, nats per bit (docs/algorithms.md)."""
    torch.manual_seed(0)
    sizes = benchmark.Sizes(hidden=64, layers=36, decoder_layers=4, height=128, width=128, samples=2, prefix=45)
    model = benchmark.build_model(sizes).to(torch.bfloat16)
    prompt = benchmark.build_prompt(model, sizes)
    drawn = rollout(model, prompt, any_noise(model, prompt, 2), return_gaps=True)
    replayed = replayed_gap(model, prompt, drawn.bits, [0, 1])
    assert replayed.dtype == drawn.gap_cond.dtype == torch.float32
    apart = sum(
        (sign * drawn.gap_cond).sigmoid() * (logsigmoid(sign * replayed) - logsigmoid(sign * drawn.gap_cond)).abs()
        for sign in (1, -1)
    )
    assert 1e-4 < apart.mean() < 0.004


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
