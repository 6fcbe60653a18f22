"""The decoder's transformer compiled: `decode.compile`."""

import shutil
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from uniar.errors import RunError
from uniar.modeling_decoder import UniARVisualDecoder

CHECKPOINT = Path(__file__).parents[1] / "golden" / "bsq64" / "ckpt"


@pytest.fixture(scope="module")
def plain():
    return UniARVisualDecoder.from_pretrained(CHECKPOINT, torch_dtype=torch.float32)


@pytest.fixture
def fresh():
    torch.compiler.reset()
    counters.clear()
    yield UniARVisualDecoder.from_pretrained(CHECKPOINT, torch_dtype=torch.float32).compile_blocks()
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("guidance_scale", [1.0, 1.5])
def test_compiled_blocks_draw_the_same_images(plain, fresh, guidance_scale):
    """Blocks of a kind share their form, and so do batches of other sizes than the first."""
    indices = torch.randint(0, 256, (5, 4, 4, 4), generator=torch.Generator().manual_seed(2))
    how = {"num_inference_steps": 2, "guidance_scale": guidance_scale, "output_type": "pt"}
    forms = []
    for size in (1, 2, 3, 5):
        of_size = {**how, "noise_seeds": range(size)}
        found, expected = (d.decode(indices[:size], 64, 64, **of_size) for d in (fresh, plain))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        forms.append(counters["stats"]["unique_graphs"])
    assert not counters["graph_break"]
    kinds = len({(b.use_dual_attention, b.context_pre_only) for b in fresh.sd3_transformer.transformer_blocks})
    assert forms[0] <= kinds
    assert forms[-1] <= 3 * kinds  # for one row, the first larger number, any number


@pytest.mark.slow
def test_blocks_that_do_not_compile(fresh, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    # Not by monkeypatch, which takes the setting away for good where torch had it by default.
    with (
        inductor.patch({"cpp.cxx": ("/nowhere/g++",)}),
        pytest.raises(RunError, match=r"the decoder's blocks do not compile: .*take decode.compile false"),
    ):
        fresh.decode(torch.zeros(1, 4, 4, 4, dtype=torch.long), 64, 64, num_inference_steps=1)
