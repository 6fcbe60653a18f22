"""How steps are run: attention over the filled slots, captured and replayed, compiled, and `auto`, which compares."""

import contextlib
import shutil

import pytest
import torch
from support.golden_inputs import any_noise, close, edit_prompt, text_prompt
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rl.config.model import LoraSection
from rl.policy.loading import base_model, trainable
from uniar.conversations import Message, encode_turns
from uniar.engine import running
from uniar.engine.cached_steps import CachedSteps
from uniar.errors import RunError, UserError
from uniar.generation import rollout
from uniar.modeling_uniar import UniARForConditionalGeneration
from uniar.writing import text_noise, write

needs_a_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


def draw(model, prompt, engine="eager", samples=3, **settings):
    noise = any_noise(model, prompt, samples)
    owners = [sample * len(prompt) // samples for sample in range(samples)]
    settings = {"guidance_scale": 2.0, "return_gaps": True} | settings
    return rollout(model, prompt, noise, prompt_index=owners, engine=engine, **settings)


def assert_same(found, expected, tolerance=None):
    assert torch.equal(found.bits, expected.bits)
    for name in ("gap_cond", "gap_uncond"):
        if tolerance is None:
            assert torch.equal(getattr(found, name), getattr(expected, name))
        else:
            close(getattr(found, name), getattr(expected, name), tolerance)


# Attention over the filled slots


@pytest.fixture
def strides(monkeypatch):
    """A stride of 4 slots, so that short drawings have several shapes; and the shapes, in the order they came."""
    seen, original = [], running.filled

    def filled(steps, token):
        seen.append(original(steps, token))
        assert steps.prefix_width + token < seen[-1] <= len(steps.slots)
        return seen[-1]

    monkeypatch.setattr(running, "STRIDE", 4)
    monkeypatch.setattr(running, "filled", filled)
    return seen


def test_attention_reads_the_filled_slots(golden, strides, monkeypatch):
    model, prompt = golden("bsq8").model(), text_prompt(golden("bsq8"), 64, 128)
    found = draw(model, prompt)
    assert strides == sorted(strides)
    assert len(set(strides)) == 3
    monkeypatch.setattr(running, "STRIDE", 1 << 20)
    strides.clear()
    assert_same(found, draw(model, prompt), 1e-5)
    assert len(set(strides)) == 1


# Captured


class Captured(TorchDispatchMode):
    """Keeps the operators of a step with the tensors they were called with, and runs them again on those, as a CUDA
    graph does: what Python had in between, such as a name for a new tensor, is not done again."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, output))
        return output

    def replay(self):
        for function, args, kwargs, output in self.calls:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(output), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class EmulatedCapture(contextlib.ExitStack):
    """Captures as a GPU does: the step that is captured is not taken. Counts its captures."""

    captures = 0
    spoiled = staticmethod(lambda steps: None)

    def __init__(self, device):
        super().__init__()

    def __call__(self, function):
        type(self).captures += 1
        steps = function.func.__self__
        before = {name: value.clone() for name, value in vars(steps).items() if isinstance(value, torch.Tensor)}
        with Captured() as graph:
            function()
        for name, value in before.items():
            getattr(steps, name).copy_(value)

        def replay():
            graph.replay()
            self.spoiled(steps)

        return replay


@pytest.fixture
def gpu(monkeypatch):
    """Graphs that are emulated, on the CPU."""
    monkeypatch.setattr(running, "GPU", "cpu")
    emulated = type("Emulated", (EmulatedCapture,), {})
    monkeypatch.setattr(running, "CudaCapture", emulated)
    monkeypatch.setattr(running, "_found_right", type(running._found_right)())
    return emulated


@torch.no_grad()
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize("engine", ["graph", "auto"])
def test_captured_steps_draw_the_same_bits(golden, gpu, strides, engine, precision, caplog):
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model, prompt = golden("bsq8").model(dtype=dtype), text_prompt(golden("bsq8"), 64, 192)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        expected = draw(model, prompt)
        several = sum(strides.count(shape) > 1 for shape in set(strides))
        assert_same(draw(model, prompt, engine), expected)
        assert gpu.captures == several > 1  # one for each shape
        alone = [draw(model, prompt, name, guidance_scale=None).bits for name in (engine, "eager")]
    assert torch.equal(*alone)
    assert not caplog.records


@pytest.mark.parametrize("engine", ["graph", "auto"])
def test_captured_steps_write_the_same_text(nano_model, nano_processor, gpu, strides, engine, caplog):
    turns = [[Message("user", (text,))] for text in ("a red circle", "Describe it in detail.")]
    prompt, noise = encode_turns(turns, nano_model, nano_processor, new_tokens=24), text_noise(range(4), 24)
    probe = write(nano_model, prompt, noise, ends=[-1])
    ends = [int(probe.tokens[sample, 5 + 3 * sample]) for sample in range(4)]
    expected = write(nano_model, prompt, noise, ends=ends)
    found = write(nano_model, prompt, noise, ends=ends, engine=engine)
    for name in ("tokens", "lengths", "log_probs", "ended"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert gpu.captures > 1
    assert not caplog.records


def flipped_bit(steps):
    steps.bits[int(steps.cursor) - 1, 0].flatten()[0] ^= 1


def failing(steps):
    raise RuntimeError("operation not permitted when stream is capturing.\nMore about it.")


@pytest.mark.parametrize(("spoiled", "said"), [(flipped_bit, "values differ"), (failing, "not permitted when stream")])
def test_auto_goes_back_to_eager(golden, gpu, caplog, spoiled, said):
    model, prompt = golden("bsq8").model(), text_prompt(golden("bsq8"), 64, 128)
    gpu.spoiled = staticmethod(spoiled)
    expected = draw(model, prompt)
    assert_same(draw(model, prompt, "auto"), expected)
    (warning,) = caplog.records
    assert "eager from here on" in warning.getMessage()
    assert said in warning.getMessage()
    assert "\n" not in warning.getMessage()
    captured = gpu.captures
    assert captured
    assert_same(draw(model, prompt, "auto"), expected)  # and does not try again
    assert (gpu.captures, len(caplog.records)) == (captured, 1)
    if spoiled is failing:
        with pytest.raises(RuntimeError, match="not permitted"):
            draw(model, prompt, "graph")


@torch.no_grad()
def test_a_capture_that_fails_later_gives_way(golden, gpu, strides, monkeypatch, caplog):
    model, prompt = golden("bsq8").model(), text_prompt(golden("bsq8"), 64, 192)
    expected, capture = draw(model, prompt), gpu.__call__

    def second_fails(self, function):
        if gpu.captures == 1:
            raise RuntimeError("CUDA out of memory.")
        return capture(self, function)

    monkeypatch.setattr(gpu, "__call__", second_fails)
    assert_same(draw(model, prompt, "auto"), expected)
    (warning,) = caplog.records
    assert "CUDA out of memory" in warning.getMessage()
    with pytest.raises(RuntimeError, match="out of memory"):
        draw(model, prompt, "graph")


@pytest.mark.gpu
@torch.no_grad()
def test_cuda_graphs_draw_the_same_bits(golden, caplog):
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU")
    model, prompt = golden("bsq8").model().cuda(), text_prompt(golden("bsq8"), 64, 192).to("cuda")
    expected = draw(model, prompt)
    for engine in ("graph", "auto"):
        assert_same(draw(model, prompt, engine), expected)
    assert not caplog.records


def test_auto_compares_once_for_each_shape(golden, gpu, monkeypatch):
    model, prompt = golden("bsq8").model(), text_prompt(golden("bsq8"), 64, 128)
    rewound, original = [], CachedSteps.rewind
    monkeypatch.setattr(CachedSteps, "rewind", lambda self, hidden: rewound.append(1) or original(self, hidden))
    for samples, times in ((3, 2), (3, 2), (2, 4), (3, 4)):
        draw(model, prompt, "auto", samples)
        assert len(rewound) == times
    draw(model, text_prompt(golden("bsq8"), 32, 32), "auto")  # a single token leaves nothing to gain
    assert len(rewound) == 4


def test_engines_that_are_not_there_are_refused(golden):
    model, prompt = golden("bsq8").model(), text_prompt(golden("bsq8"))
    with pytest.raises(UserError, match="graph needs a CUDA GPU and the model is on cpu; take auto, eager or compiled"):
        draw(model, prompt, "graph")
    with pytest.raises(UserError, match="'fast'; it must be one of eager, compiled, graph, auto"):
        draw(model, prompt, "fast")
    assert_same(draw(model, prompt, "auto"), draw(model, prompt))


# Compiled


@needs_a_compiler
@pytest.mark.slow
def test_compiled_layers_draw_the_same_bits(golden, strides):
    """One layer is compiled for all, and once more where attention reads more slots."""
    model, prompt = golden("bsq8").model(), text_prompt(golden("bsq8"), 64, 128)
    expected = draw(model, prompt)
    torch.compiler.reset()
    counters.clear()
    strides.clear()
    assert_same(draw(model, prompt, "compiled"), expected, 1e-4)
    assert len(set(strides)) == 3
    assert counters["stats"]["unique_graphs"] <= 4  # the start of a step; a layer with one number of slots, any, all
    assert not counters["graph_break"]
    assert_same(draw(model, prompt, "compiled"), expected, 1e-4)
    assert counters["stats"]["unique_graphs"] <= 4


@needs_a_compiler
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "bfloat16", "autocast", "edit"])
def test_compiled_layers_of_other_models(golden, kind):
    model = UniARForConditionalGeneration.from_pretrained(
        golden("bsq8").checkpoint, dtype=torch.bfloat16 if kind == "bfloat16" else torch.float32
    )
    if kind == "lora":
        model = base_model(trainable(model, LoraSection()))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    prompt = edit_prompt(golden("bsq8")) if kind == "edit" else text_prompt(golden("bsq8"), 64, 128)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        found, expected = (draw(model, prompt, engine) for engine in ("compiled", "eager"))
    if kind in ("lora", "edit"):
        assert_same(found, expected, 1e-4)
    else:  # the first token has the same past
        assert (found.bits != expected.bits)[:, 0].float().mean() < 0.02
        close(found.gap_cond[:, 0], expected.gap_cond[:, 0], 0.1)


@pytest.mark.slow
def test_without_a_compiler(golden, monkeypatch):
    torch.compiler.reset()
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    without = inductor.patch({"cpp.cxx": ("/nowhere/g++",)})
    with without, pytest.raises(RunError, match=r"the layers do not compile: .*take rollout.engine eager or auto"):
        draw(golden("bsq8").model(), text_prompt(golden("bsq8")), "compiled")
    torch.compiler.reset()
