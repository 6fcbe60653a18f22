"""An update split over micro-batches and processes has the loss and the gradient of all its rows at once."""

from pathlib import Path

import pytest
import torch

from rl.algorithm.losses import Extent, LossInputs, LossSettings, TokenInputs, loss_named, policy_loss, share
from rl.algorithm.losses.inputs import PolicyInputs

ROWS, SHAPE = 7, (5, 1, 4, 2)
SIZES = {"one size": [5] * ROWS, "several sizes": [2, 5, 3, 3, 1, 4, 2], "texts": [3, 1, 5, 2, 4, 4, 1]}
PLUGIN = """
def {how}(inputs, ratio, settings):
    return (ratio - 1) ** 2 / inputs.narrowing(settings.level) - ratio * inputs.advantages

{how}.aggregation = "{how}"
"""
VARIANTS = [(loss, level) for loss in ("grpo", "dr_grpo", "dapo", "cispo") for level in (None, "sequence")]
VARIANTS += [("gspo", None), ("dppo_tv", None), ("grpo", "visual_token"), ("plugin", None), ("plugin", "sequence")]


class Rows:
    """Rows of one kind, cut to the longest of those that a forward takes: what a replay of them would give."""

    def __init__(self, kind: str, seed: int) -> None:
        self.kind, self.lengths = kind, torch.tensor(SIZES[kind])
        shape = (ROWS, 5, 1, 1, 1) if kind == "texts" else (ROWS, *SHAPE)
        generator = torch.Generator().manual_seed(seed)
        self.noise = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
        self.advantages = torch.randn(ROWS, generator=generator, dtype=torch.float64)
        self.weight = torch.tensor([1.0, 0.5], dtype=torch.float64, requires_grad=True)
        """parameters of the policy, shared by all rows"""

    def inputs(self, rows: list[int]) -> PolicyInputs:
        width = int(self.lengths[rows].max())
        kept = self.noise[:, rows, :width]
        gap = self.weight[0] * kept[0] + self.weight[1] * kept[1]
        old, ref = (gap.detach() + scale * noise for scale, noise in ((3.0, kept[2]), (0.3, kept[3])))
        mask = torch.arange(width) < self.lengths[rows, None]
        if self.kind != "texts":
            mask = None if mask.all() else mask  # as a run gives it: none for pictures of one size
            return LossInputs(self.advantages[rows], kept[3] > 0, gap, old, ref, mask)
        logp, old, ref = (torch.nn.functional.logsigmoid(each).flatten(1) for each in (gap, old, ref))
        others = {"entropy": -logp * logp.exp(), "ref_kl": (logp - ref) ** 2}
        return TokenInputs(advantages=self.advantages[rows], logp=logp, old_logp=old, mask=mask, **others)

    def extent(self, rows: list[int]) -> Extent:
        each = 1 if self.kind == "texts" else SHAPE[1] * SHAPE[2] * SHAPE[3]
        return Extent(len(rows), each * int(self.lengths[rows].sum()), each * int(self.lengths[rows].max()))


def splits(seed: int) -> list[list[int]]:
    """The rows in random order, dealt to between two forwards and one for each row."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(ROWS, generator=generator).tolist()
    cuts = torch.randperm(ROWS - 1, generator=generator)[: 1 + seed % (ROWS - 1)].sort().values.tolist()
    return [order[start + 1 : end + 1] for start, end in zip([-1, *cuts], [*cuts, ROWS - 1], strict=True)]


@pytest.fixture(scope="module")
def plugins(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("plugins") / "mine.py"
    path.write_text("".join(PLUGIN.format(how=how) for how in ("sample", "constant", "batch")))
    return path


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize(("loss", "level"), VARIANTS)
def test_the_parts_add_up_to_the_whole(plugins, kind, loss, level):
    names = [f"{plugins}:{how}" for how in ("sample", "constant", "batch")] if loss == "plugin" else [loss]
    clipped = []
    for name in names:
        settings = LossSettings(name, level, centred=True, beta=0.1, entropy_coef=0.2)
        for seed in range(6):
            rows, parts = Rows(kind, seed), splits(seed)
            whole, metrics = policy_loss(rows.inputs(list(range(ROWS))), settings)
            clipped.append(metrics.get("clip_ratio/region_mean", torch.tensor(0.5)).item())
            extents, how = [rows.extent(part) for part in parts], loss_named(name).aggregation
            losses = [policy_loss(rows.inputs(part), settings)[0] for part in parts]
            found = sum(share(own, extents, how) * loss for own, loss in zip(extents, losses, strict=True))
            assert found.item() == pytest.approx(whole.item(), rel=1e-12, abs=1e-14)
            expected, gradient = (torch.autograd.grad(loss, rows.weight)[0] for loss in (whole, found))
            assert torch.allclose(gradient, expected, rtol=1e-11, atol=1e-14)
            assert expected.abs().min() > 1e-6
    assert 0 < sum(clipped) < len(clipped)


@pytest.mark.parametrize("how", ["sample", "constant", "batch"])
def test_a_forward_that_stands_in_counts_nothing(how):
    extents = [Extent(2, 12, 8), Extent(0, 4, 20), Extent(1, 6, 6)]
    assert [share(own, extents, how) for own in (extents[0], extents[2])] == [
        share(own, [extents[0], extents[2]], how) for own in (extents[0], extents[2])
    ]
    assert share(extents[1], extents, how) == 0
    assert share(extents[1], [extents[1]] * 2, how) == 0
    assert share(Extent(2, 0, 3), [Extent(2, 0, 3)], how) == (how != "batch")


def test_what_they_are():
    """Three texts: two of 3 and 5 tokens in one forward, one of 8 in another."""
    extents = [Extent(2, 8, 5), Extent(1, 8, 8)]
    assert [share(own, extents, "sample") for own in extents] == [2 / 3, 1 / 3]
    assert [share(own, extents, "batch") for own in extents] == [0.5, 0.5]
    assert [share(own, extents, "constant") for own in extents] == pytest.approx([5 / 12, 1 / 3])
