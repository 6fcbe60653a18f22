"""The released model on a GPU that computes nothing: what an update asks of it, counted. No figure here is a time.

Needs a C++ compiler for device.cpp, and a build of torch without CUDA, whose place it takes.
"""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler builds the fake GPU's device.cpp"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA, whose place the fake GPU takes"),
]

LAUNCHES = {
    "rollout of 64": 5247,
    "rollout of 64, step": 1147,
    "rollout of 64, guided": 6869,
    "rollout of 64, guided, step": 1154,
    "replay, micro-batch 2": 1923,
    "replay, micro-batch 8": 1923,
    "update, micro-batch 2": 6599,
    "update, micro-batch 8": 6599,
    "update, micro-batch 8, 12 layers kept": 6095,
    "update, micro-batch 8, all kept": 4919,
    "update, micro-batch 2, guided": 6737,
    "update, micro-batch 2, all kept": 4919,
    "LoRA, micro-batch 4": 13434,
    "LoRA, micro-batch 4, all kept": 9594,
    "decode of 16": 2179,
    "decode of 16, step": 999,
    "decode of 16, vae": 149,
    "64 texts": 4537,
    "64 texts, step": 975,
    "replay of 8 texts": 1869,
    "update of 8 texts": 6243,
}
"""kernels at most; of a rollout its first 3 steps, of a decode 2. What lowers one, lowers it here."""

HEAD = {2048, 16384}
"""sides of the visual head's last product, which is meant to be in float32 (docs/architecture.md)"""

DEFAULT = ["rollout of 64, guided", "update, micro-batch 2", "decode of 16", "update of 8 texts"]
PHASES = [
    phase if phase in DEFAULT else pytest.param(phase, marks=pytest.mark.slow)
    for phase in LAUNCHES
    if not phase.endswith((", step", ", vae"))
]


@pytest.fixture(scope="module")
def counted(tmp_path_factory, request):
    """`counted(phase)`: its figures. The phases that this session asks for are run in one process."""
    device = tmp_path_factory.mktemp("fake_gpu") / "device.so"
    build(device)
    asked = [item.callspec.params["phase"] for item in request.session.items if item.path == Path(__file__)]

    @cache
    def figures() -> dict[str, dict]:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "fakegpu.phases", str(device), *dict.fromkeys(asked)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{HERE.parent}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=1500,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        return {phase: found for line in lines for phase, found in json.loads(line).items()}

    return lambda phase: figures()[phase]


def build(device: Path) -> None:
    torch_folder = Path(torch.__file__).parent
    subprocess.run(
        [
            *(COMPILER, "-O0", "-std=c++20", "-shared", "-fPIC", str(HERE / "device.cpp"), "-o", str(device)),
            *(f"-I{torch_folder}/include", f"-L{torch_folder}/lib", f"-Wl,-rpath,{torch_folder}/lib"),
            *("-lc10", "-ltorch_cpu", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"),
        ],
        check=True,
        timeout=600,
    )


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_of_the_released_model(counted, phase):
    found = counted(phase)
    assert not found["mixed"], "operations on tensors of two devices"
    assert not found["cudnn_with_mask"]
    launches = {phase: found["launches"]}
    launches |= {f"{phase}, {part}": found[part]["launches"] for part in ("step", "vae") if part in found}
    assert {name: count for name, count in launches.items() if count > LAUNCHES[name]} == {}
    assert all(count > 0.9 * LAUNCHES[name] for name, count in launches.items()), f"record what it is now: {launches}"
    if "step" in found:
        assert found["step"]["waits"] == found["step"]["copies"] == {}, "the host waits for a step"
    else:
        assert sum(found["waits"].values()) <= 1
        assert not found["copies"]
    products = found["large_products"]
    assert products["torch.bfloat16"] > 100
    assert products.keys() <= {"torch.bfloat16", "torch.float32"}
    assert all(HEAD & set(shape) for shape in found["float32_shapes"]), "a large product in float32"
    assert found["planned"] == pytest.approx(found["bytes"], rel=0.15)
