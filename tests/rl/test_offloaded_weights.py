"""Weights that wait in the machine's memory: where they are, when, and in which order they are copied."""

from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from support.training_runs import changed, run, small_recipe
from torch import nn

from rl.config.model import ModelSection
from rl.config.recipe import load_recipe
from rl.distributed import offloaded_weights
from rl.distributed.offloaded_weights import OffloadedWeights, packed, page_locked
from rl.plan.planned_model import planned_model
from rl.policy.reference import FrozenCopy
from rl.scoring import scorer

CPU = torch.device("cpu")
"""as the device: there, too, they are copied"""


@pytest.fixture
def model() -> nn.Module:
    made = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    made.register_buffer("none", torch.empty(0))
    return made


def places(model: nn.Module) -> list[int]:
    return [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers()) if len(tensor.shape)]


def test_they_come_and_go(model):
    weights, home = OffloadedWeights(model, CPU), places(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for arrive in (weights.fetch, weights.use):
        arrive()
        there = places(model)
        weights.use()  # what is there does not come again
        assert places(model) == there
        assert not set(there) & set(home) - {0}
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        weights.release()
        weights.release()
        assert places(model) == home
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_part_stays(model):
    weights = OffloadedWeights(model, CPU)
    weights.keep(model[2])
    home = places(model[0]), places(model[2])
    weights.use()
    assert places(model[0]) != home[0]
    assert places(model[2]) == home[1]
    weights.release()
    assert (places(model[0]), places(model[2])) == home


def test_what_is_shared_stays_shared(model):
    model[0].bias = model[1].bias
    weights, home = OffloadedWeights(model, CPU), places(model)
    weights.use()
    assert model[0].bias is model[1].bias
    assert model[0].bias.data_ptr() not in home
    weights.release()
    assert places(model) == home


def test_a_copy_waits_for_what_was_launched_and_what_follows_for_the_copy(model, monkeypatch):
    """With CUDA's streams played by recorders."""
    order = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            order.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def on(stream):
        order.append(f"copies on {stream.name}")
        yield

    def taken(like, device):
        order.append("memory")
        return torch.zeros(like.shape, dtype=like.dtype)

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch, "empty_like", taken)  # on the stream that is current, which is to be the main one
    weights = OffloadedWeights(model, CPU)
    weights._stream = Stream("side")
    weights.fetch()
    tensors = len(places(model))
    assert order == ["memory"] * (tensors + 1) + ["side waits for main", "copies on side"]
    weights.use()
    weights.release()
    assert order[tensors + 3 :] == ["main waits for side"] * 2  # whoever never used it does not free what is copied to


def test_locked_memory_is_taken_in_blocks(monkeypatch):
    monkeypatch.setattr(offloaded_weights, "BLOCK", 256)
    tensors = [torch.randn(10), torch.randn(3, 7).T, torch.arange(5), torch.randn(100), torch.tensor(2.0)]
    copies = page_locked(tensors)
    for tensor, copy in zip(tensors, copies, strict=True):
        assert torch.equal(tensor, copy)
        assert copy.is_contiguous()
        assert copy.data_ptr() % 64 == 0
    blocks = {copy.untyped_storage().data_ptr(): copy.untyped_storage().nbytes() for copy in copies}
    assert sorted(blocks.values()) == [256, 512]  # 448 + 64 and 128 + 64 + 64
    assert page_locked([]) == []
    ends = sorted((copy.data_ptr(), copy.data_ptr() + copy.nbytes) for copy in copies)
    assert all(end <= start for (_, end), (start, _) in pairwise(ends))


def test_the_released_weights_fill_their_blocks():
    model = planned_model(load_recipe("configs/uniar_sft_512.yaml").model).policy(ModelSection())
    sizes = [tensor.nbytes for tensor in (*model.parameters(), *model.buffers())]
    _, blocks = packed(sizes)
    assert all(block & (block - 1) == 0 for block in blocks)
    assert sum(sizes) <= sum(blocks) < 1.03 * sum(sizes)


@pytest.mark.gpu
def test_on_a_gpu_they_are_the_same_and_their_memory_comes_back():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    device = torch.device("cuda", torch.cuda.current_device())
    model = nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(8)))
    read = torch.full((8 * 2048, 2048), 3.0, device=device)
    expected = [weight.detach().clone() for weight in model.parameters()]
    weights, before = OffloadedWeights(model, device), torch.cuda.memory_allocated()
    for _ in range(3):
        earlier = read.clone()
        large = torch.randn(8192, 8192, device=device)
        torch.mm(large, large)
        total = earlier.sum()  # waits for the product, and its memory is taken meanwhile
        del earlier, large
        weights.fetch()
        assert total.item() == read.sum().item()
        weights.use()
        there = [weight.detach() * 1 for weight in model.parameters()]
        weights.release()
        assert all(torch.equal(one.cpu(), other) for one, other in zip(there, expected, strict=True))
        del there, total
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize(
    ("rollout", "expected"),
    [({}, ["fetch", "decode", "use"]), ({"dynamic_sampling": {"max_rounds": 1}}, ["decode", "use"])],
    ids=["", "dynamic_sampling"],
)
def test_a_reference_comes_while_drawings_are_decoded(nano_checkpoint, tmp_path, monkeypatch, rollout, expected):
    order = []

    def recorded(owner, name: str, said: str) -> None:
        whole = getattr(owner, name)

        def recording(*given, **named):
            order.append(said)
            return whole(*given, **named)

        monkeypatch.setattr(owner, name, recording)

    recorded(FrozenCopy, "fetch", "fetch")
    recorded(scorer, "decode_and_score", "decode")
    recorded(FrozenCopy, "ready", "use")
    recipe = small_recipe(nano_checkpoint, tmp_path)
    sections = {"model": {"reference_device": "cpu"}, "algorithm": {"beta": 0.05}, "rollout": rollout}
    run(changed(recipe, **sections, trainer={"max_steps": 1, "save_strategy": "no"}))
    assert order == expected
