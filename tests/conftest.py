"""Fixtures that several test files share: golden vectors, a small random checkpoint, and their parts loaded once."""

import functools
import gc
import json
import os

# Tests share few cores, and threads that wait for each other slow small models down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")

from pathlib import Path

# Not the user's own cache folder; what is there is found again by its content.
os.environ.setdefault("UNIAR_CACHE", str(Path(__file__).parents[1] / "models"))

import numpy as np
import pytest
import torch
from PIL import Image

import uniar  # noqa: F401  (first: makes torchvision importable)
from uniar.import_hooks import on_import

torch.set_num_threads(1)
gc.disable()  # until all is collected: what test files import is no garbage

GOLDEN = Path(__file__).parent / "golden"


def draw_no_curve(callbacks) -> None:
    """Of a small run matplotlib takes half the time. metrics.png has an empty panel after those of this process; the
    whole picture is drawn in tests/rl/test_plot.py, by runs in processes of their own, and with `whole_plots`."""
    draw = callbacks.plot_metrics
    callbacks.plot_metrics = lambda lines, path, held_out_as=None: draw([], path)


on_import("rl.trainer.callbacks", after=draw_no_curve)


def pytest_collection_finish() -> None:
    """The libraries are imported by now, and stay: a garbage collection, of which each run has several, need not look
    at their millions of objects again. It takes two fifths off a small run."""
    gc.freeze()
    gc.enable()


class Golden:
    """A variant of the reference's vectors: its checkpoint folder, tensors, parameters and models, each loaded once.

    The models are shared: a test that changes one loads its own.
    """

    def __init__(self, variant: str) -> None:
        self.folder = GOLDEN / variant
        self.checkpoint = self.folder / "ckpt"
        self.params = json.loads((self.folder / "manifest.json").read_text())["params"]
        self._models = {}

    @functools.cache  # noqa: B019  (lives as long as the session)
    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        return load_file(self.folder / f"{name}.safetensors")

    @functools.cached_property
    def processor(self):
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(self.checkpoint)

    def model(self, attention: str = "sdpa", dtype: torch.dtype = torch.float32):
        from uniar.modeling_uniar import UniARForConditionalGeneration

        if (attention, dtype) not in self._models:
            self._models[attention, dtype] = UniARForConditionalGeneration.from_pretrained(
                self.checkpoint, torch_dtype=dtype, attn_implementation=attention
            )
        return self._models[attention, dtype]

    def pixels(self, name: str = "vision", tag: str = "") -> torch.Tensor:
        """The processor's patches, stored as 8-bit levels."""
        return (self.tensors(name)[f"{tag}pixel_values_u8"].float() - 127.5) / 127.5


@pytest.fixture(scope="session")
def golden():
    """`golden("bsq8")` is that variant's `Golden`."""
    return functools.cache(Golden)


@pytest.fixture(scope="session")
def nano_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete checkpoint folder with random weights, float32."""
    from uniar.presets.build import build_preset

    return build_preset("nano", tmp_path_factory.mktemp("presets") / "nano")


@pytest.fixture(scope="session")
def nano_processor(nano_checkpoint: Path):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(nano_checkpoint)


@pytest.fixture(scope="session")
def nano_decoder(nano_checkpoint: Path):
    from uniar.modeling_decoder import UniARVisualDecoder

    return UniARVisualDecoder.from_pretrained(nano_checkpoint, torch_dtype=torch.float32)


@pytest.fixture
def whole_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    from rl.run.plot import plot_metrics
    from rl.trainer import callbacks

    monkeypatch.setattr(callbacks, "plot_metrics", plot_metrics)


@pytest.fixture
def nano_model(nano_checkpoint: Path):
    """A fresh model for each test: some of them train it."""
    from uniar.modeling_uniar import UniARForConditionalGeneration

    return UniARForConditionalGeneration.from_pretrained(nano_checkpoint)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that `typed` types in: a plug-in, and pictures that are black, grey and white."""
    from support.typed_rewards import fill

    monkeypatch.chdir(tmp_path)
    return fill(tmp_path)


@pytest.fixture
def typed(capsys: pytest.CaptureFixture):
    """Runs `uniar-rl rewards …` and returns its exit status and what it wrote."""
    from rl.cli import main

    def run(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        status = main(["rewards", *words])
        written = capsys.readouterr()
        return status, written.err if status else written.out

    return run


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((140, 100)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"
