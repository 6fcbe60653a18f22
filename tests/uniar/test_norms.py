"""RMSNorm in one kernel: the bits of the formula it replaces in float32, and one kernel wherever it can be."""

import pytest
import torch
from diffusers.models.normalization import RMSNorm as PlainRMSNorm
from support.golden_inputs import any_noise, replayed_gap, text_prompt
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextRMSNorm

from uniar.modeling_sd3 import SD3Transformer2DModelWithSigLIP
from uniar.modeling_text import RMSNorm
from uniar.visual_head import HeadNorm


@pytest.fixture
def fused(monkeypatch):
    """The types of input and weights of each call of torch's kernel, which there is for equal types alone."""
    calls, original = [], torch.nn.functional.rms_norm

    def rms_norm(hidden, shape, weight, eps):
        calls.append((hidden.dtype, weight.dtype))
        return original(hidden, shape, weight, eps)

    monkeypatch.setattr(torch.nn.functional, "rms_norm", rms_norm)
    return calls


@pytest.mark.parametrize("width", [16, 64, 4096])
@pytest.mark.parametrize("kind", [RMSNorm, HeadNorm])
def test_float32_has_the_bits_of_qwen3_vls(width, kind):
    results = []
    for norm in (kind(width), Qwen3VLTextRMSNorm(width)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            torch.nn.init.normal_(norm.weight)
            hidden = torch.randn(3, 5, width, requires_grad=True)
            output = norm(hidden)
            (output * torch.randn(output.shape)).sum().backward()
        results.append((output, hidden.grad, norm.weight.grad))
    assert all(torch.equal(found, expected) for found, expected in zip(*results, strict=True))


def test_under_autocast_float32_weights_keep_their_formula(fused):
    hidden, norm = torch.randn(4, 8, dtype=torch.bfloat16), RMSNorm(8)
    assert torch.equal(norm(hidden), Qwen3VLTextRMSNorm(8)(hidden))
    assert not fused


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_norms_of_the_policy_are_one_kernel(golden, fused, dtype):
    model, prompt = golden("bsq8").model(dtype=dtype), text_prompt(golden("bsq8"))
    layers = len(model.model.language_model.layers) + len(model.visual_decoder_layers)
    with torch.no_grad():
        replayed_gap(model, prompt, torch.zeros_like(any_noise(model, prompt, 2), dtype=torch.uint8), [0, 1])
    half = [(dtype, dtype)] * 2 * layers
    assert sorted(fused, key=str) == sorted([(torch.float32, torch.float32)] * (2 * layers + 1) + half, key=str)


def test_the_decoders_norms_are_one_kernel_off_the_cpu(nano_checkpoint, fused):
    config = SD3Transformer2DModelWithSigLIP.load_config(nano_checkpoint / "sd3_transformer")
    for device, calls in (("meta", 1), ("cpu", 0)):
        with torch.device(device):
            transformer = SD3Transformer2DModelWithSigLIP.from_config(config).to(torch.bfloat16)
        norms = [module for module in transformer.modules() if isinstance(module, PlainRMSNorm)]
        assert norms
        fused.clear()
        for norm in norms:
            hidden = torch.zeros(2, 3, *norm.dim, dtype=torch.bfloat16, device=device)
            assert norm(hidden).dtype == torch.bfloat16
        assert fused == [(torch.bfloat16, torch.bfloat16)] * calls * len(norms)
