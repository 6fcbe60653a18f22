"""DeepSpeed's shards put together; nothing in them is run."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from rl.checkpoint.zero_shards import ZeroShards
from uniar.errors import UserError


def write_zero2(folder: Path, weights: dict[str, torch.Tensor], frozen: dict[str, torch.Tensor], ranks: int) -> None:
    """What DeepSpeed's ZeRO-2 writes, as far as weights go: each group end to end, cut into equal parts."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    shards = folder / "global_step1"
    shards.mkdir(parents=True)
    (folder / "latest").write_text("global_step1")
    names = list(weights)
    groups = [names[::2], names[1::2]]
    flat = []
    for group in groups:
        joined = torch.cat([weights[name].flatten() for name in group])
        flat.append(F.pad(joined, (0, -len(joined) % (2 * ranks))).chunk(ranks))
    buffers = {"counts": torch.arange(3)}
    model = {
        "module": {**weights, **frozen, **buffers},
        "buffer_names": ["counts"],
        "param_shapes": [{name: weights[name].shape for name in group} for group in groups],
        "frozen_param_shapes": {name: tensor.shape for name, tensor in frozen.items()},
        "frozen_param_fragments": frozen,
        "shared_params": {"tied": names[0]},
    }
    torch.save(model, shards / "mp_rank_00_model_states.pt")
    for rank in range(ranks):
        state = {
            "zero_stage": ZeroStageEnum.gradients,
            "partition_count": [ranks, ranks],
            "loss_scaler": LossScaler(1.0),
            "single_partition_of_fp32_groups": [group[rank] for group in flat],
        }
        torch.save({"optimizer_state_dict": state}, shards / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")


@pytest.fixture
def zero2(tmp_path) -> tuple[Path, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    weights = {f"w{n}": torch.randn(3 + n, 5, generator=generator) for n in range(5)}
    frozen = {"eye": torch.eye(3, dtype=torch.bfloat16)}
    write_zero2(tmp_path / "checkpoint-1", weights, frozen, ranks=11)
    return tmp_path / "checkpoint-1", {**weights, **frozen, "counts": torch.arange(3), "tied": weights["w0"]}


def test_zero2_shards_are_put_together(zero2):
    folder, expected = zero2
    found = ZeroShards(folder)
    assert (found.stage, found.ranks) == (2, 11)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert found["eye"].dtype == torch.bfloat16


def test_incomplete_shards_are_refused(zero2):
    folder, _ = zero2
    last = folder / "global_step1" / "zero_pp_rank_10_mp_rank_00_optim_states.pt"
    content = last.read_bytes()
    last.unlink()
    with pytest.raises(UserError, match=r"has 10 \*_optim_states.pt files of the 11"):
        ZeroShards(folder)
    last.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"rank_10_mp_rank_00_optim_states\.pt cannot be read"):
        ZeroShards(folder)
    (folder / "latest").write_text("../elsewhere")
    with pytest.raises(UserError, match="not a folder beside it"):
        ZeroShards(folder)
    (folder / "latest").unlink()
    with pytest.raises(UserError, match="not a DeepSpeed checkpoint"):
        ZeroShards(folder)


class _Payload:
    """Unpickled, it would make a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


def test_shards_are_not_unpickled(zero2, tmp_path):
    folder, _ = zero2
    shard = folder / "global_step1" / "zero_pp_rank_3_mp_rank_00_optim_states.pt"
    torch.save({"optimizer_state_dict": {"loss_scaler": _Payload(tmp_path / "made")}}, shard)
    with pytest.raises(UserError, match="cannot be read as a DeepSpeed shard"):
        ZeroShards(folder)
    assert not (tmp_path / "made").exists()
    torch.load(shard, weights_only=False)["optimizer_state_dict"]["loss_scaler"].close()
    assert (tmp_path / "made").exists()
