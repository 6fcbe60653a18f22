"""The blocks of the SD3 transformer in fewer kernels, against diffusers' own forward; a CPU runs both."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention import JointTransformerBlock
from torch import Tensor

from uniar.modeling_decoder import UniARVisualDecoder
from uniar.modeling_sd3 import SD3Transformer2DModelWithSigLIP
from uniar.sd3_block import SD3Block

CHECKPOINT = Path(__file__).parents[1] / "golden" / "bsq64" / "ckpt"


@pytest.fixture(scope="module")
def decoder():
    return UniARVisualDecoder.from_pretrained(CHECKPOINT, torch_dtype=torch.float32)


def tokens(decoder, rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Latent tokens, prompt tokens and conditioning."""
    generator, width = torch.Generator().manual_seed(0), decoder.sd3_transformer.inner_dim
    shapes = (3, 16, width), (3, 7, width), (rows, width)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3])
def test_blocks_compute_the_same(decoder, rows):
    """With a conditioning for each image, and with one for all."""
    latent, prompt, temb = tokens(decoder, rows)
    kinds = set()
    for block in decoder.sd3_transformer.transformer_blocks:
        kinds.add((block.use_dual_attention, block.context_pre_only))
        expected = JointTransformerBlock.forward(block, latent, prompt, temb.expand(3, -1))
        found = block.fused(latent, prompt, temb)
        assert torch.equal(block(latent, prompt, temb.expand(3, -1))[1], expected[1])  # as diffusers has it, on a CPU
        for mine, theirs in zip(found, expected, strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    assert kinds == {(True, False), (False, True)}


@torch.no_grad()
def test_blocks_round_no_more_in_bfloat16(decoder):
    for block in decoder.sd3_transformer.transformer_blocks:
        given = tokens(decoder, 1)
        exact = block.fused(*given)[1]
        half = copy.deepcopy(block).bfloat16()
        given = [tensor.bfloat16() for tensor in given]
        apart = [
            (found.float() - exact).square().mean().sqrt()
            for found in (
                half.fused(*given)[1],
                JointTransformerBlock.forward(half, *given[:2], given[2].expand(3, -1))[1],
            )
        ]
        assert apart[0] < 1.1 * apart[1]


@torch.no_grad()
def test_a_decoder_of_such_blocks_draws_the_same(decoder, monkeypatch):
    indices = torch.randint(0, 256, (2, 4, 4, 4), generator=torch.Generator().manual_seed(2))
    how = {"num_inference_steps": 2, "noise_seeds": [0, 1], "output_type": "pt"}
    for guidance in (1.0, 1.5):
        expected = decoder.decode(indices, 64, 64, guidance_scale=guidance, **how)
        with monkeypatch.context() as patched:
            patched.setattr(
                SD3Block,
                "forward",
                lambda self, hidden_states, encoder_hidden_states, temb, **_: self.fused(
                    hidden_states, encoder_hidden_states, temb[:1]
                ),
            )
            found = decoder.decode(indices, 64, 64, guidance_scale=guidance, **how)
        assert not torch.equal(found, expected)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_names_and_shapes_are_diffusers_own(decoder):
    config = {**decoder.sd3_transformer.config}
    own = {name: tensor.shape for name, tensor in decoder.sd3_transformer.state_dict().items()}
    names = SD3Transformer2DModel._get_init_keys(SD3Transformer2DModel) - {"self"}
    with torch.device("meta"):
        theirs = SD3Transformer2DModel(**{name: value for name, value in config.items() if name in names})
        mine = SD3Transformer2DModelWithSigLIP.from_config(config)
    expected = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: shape for name, shape in own.items() if name in expected} == expected
    assert {name: tensor.shape for name, tensor in mine.state_dict().items()} == own


def test_blocks_are_one_graph(decoder):
    torch.compiler.reset()
    latent, prompt, temb = tokens(decoder, 1)
    for block in decoder.sd3_transformer.transformer_blocks:
        compiled = torch.compile(block.fused, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(latent, prompt, temb)[1], block.fused(latent, prompt, temb)[1])
    torch.compiler.reset()


def test_blocks_have_gradients_where_gelu_is_part_of_its_product(decoder, monkeypatch):
    """That product has no derivative, so it is for passes without a gradient."""
    block, calls, product = copy.deepcopy(decoder.sd3_transformer.transformer_blocks[0]), [], torch._addmm_activation
    latent, prompt, temb = tokens(decoder, 1)
    latent.requires_grad_(True)
    block.fused(latent, prompt, temb)[1].sum().backward()
    expected = latent.grad.clone()

    def counted(*given, **how):
        calls.append(how)
        return product(*given, **how)

    monkeypatch.setattr(torch, "_addmm_activation", counted)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    latent.grad = None
    block.fused(latent, prompt, temb)[1].sum().backward()
    assert torch.equal(latent.grad, expected)
    assert not calls
    block.requires_grad_(False)
    block.fused(latent.detach(), prompt, temb)
    assert calls == 2 * [{"use_gelu": True}]
    with torch.no_grad():
        block.requires_grad_(True).fused(latent, prompt, temb)
    assert len(calls) == 4


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
def test_blocks_on_a_gpu(decoder, dtype, apart):
    """GELU comes out of its product there, in the form that it has here."""
    for block in decoder.sd3_transformer.transformer_blocks:
        given = tokens(decoder, 1)
        expected = block.fused(*given)[1]
        on_gpu = copy.deepcopy(block).to("cuda", dtype)
        found = on_gpu(*(tensor.to("cuda", dtype) for tensor in given))[1].float().cpu()
        torch.testing.assert_close(found, expected, rtol=0, atol=apart)
