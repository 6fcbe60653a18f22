"""Plans from config files alone, of small and of released sizes."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from support.planned_recipes import plan_of, planned_settings, recipe_of

from benchmarks import small_preset  # noqa: F401 (it makes the preset known)
from rl.checkpoint.tensor_files import TensorFiles
from rl.config.recipe import load_recipe
from rl.plan.estimate import GIB, make_plan
from rl.plan.planned_model import PlannedModel, planned_model
from rl.plan.simulation import Simulation
from rl.train import train
from uniar.errors import UserError

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden" / "bsq8" / "ckpt"


@pytest.fixture
def settings(nano_checkpoint, tmp_path) -> dict:
    return planned_settings(nano_checkpoint, tmp_path)


def test_config_files_are_enough(settings, nano_checkpoint, tmp_path):
    bare = tmp_path / "bare"
    for file in nano_checkpoint.rglob("config.json"):
        copy = bare / file.relative_to(nano_checkpoint)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    recipe = recipe_of(settings, model={"path": str(bare)})
    assert plan_of(recipe).parts == plan_of(recipe_of(settings)).parts
    shutil.rmtree(bare / "sd3_pipeline")
    assert "no decoder configs" in planned_model(recipe.model).origin
    (bare / "config.json").write_text('{"model_type": "qwen3_vl"}')
    with pytest.raises(UserError, match=r"is not a UniAR model's"):
        planned_model(recipe.model)
    with pytest.raises(UserError, match="someone/something is not a folder, and its configs could not be had"):
        planned_model(recipe_of(settings, model={"path": "someone/something"}).model)


def test_configs_of_transformers_4_are_read(settings):
    recipe = recipe_of(settings, model={"path": str(GOLDEN)})
    policy = planned_model(recipe.model).policy(recipe.model)
    stored = TensorFiles(GOLDEN).stored
    shapes = {name: tuple(tensor.shape) for name, tensor in policy.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in stored.items()}


@pytest.fixture(scope="module")
def released() -> PlannedModel:
    return planned_model(load_recipe(ROOT / "configs" / "uniar_sft_512.yaml").model)


def test_weights_of_another_type_than_the_files_are_converted_in_memory(released_simulation):
    recipe = load_recipe(RECIPES["uniar_sft_lora"], ["model.dtype=float32"])
    plan = make_plan(recipe, released_simulation, 1, 200 * GIB)
    assert plan.host_loading - plan.host == plan.states.whole > 0


def test_released_size(released):
    assert "written down in rl/plan/released.json" in released.origin
    policy = released.policy(load_recipe(ROOT / "configs" / "uniar_sft_512.yaml").model)
    assert sum(parameter.numel() for parameter in policy.parameters()) == pytest.approx(10e9, rel=0.05)
    transformer = released.sd3_transformer(torch.bfloat16)
    # Stable Diffusion 3.5 Medium has 2.24 billion, and UniAR adds one projection of 4,608 features.
    own = sum(parameter.numel() for parameter in transformer.parameters()) - 4608 * 1536
    assert own == pytest.approx(2.243e9, rel=0.005)


@pytest.fixture(scope="module")
def released_simulation(released) -> Simulation:
    return Simulation(released)


RECIPES = {file.stem: file for file in sorted((ROOT / "configs").glob("uniar_sft_*.yaml"))}


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_say_their_memory(name, released_simulation):
    """Their heads name the command that plans them, and its peak."""
    head = "".join(line[1:] for line in RECIPES[name].read_text().splitlines(keepends=True) if line.startswith("#"))
    gpus = int(re.search(r"uniar-rl plan \S+ --gpus (\d+)", head)[1])
    peak = float(re.search(r"peak of ([\d.]+) GiB", head)[1])
    plan = make_plan(load_recipe(RECIPES[name]), released_simulation, gpus, 80 * GIB)
    assert plan.fits
    assert plan.peak / GIB == pytest.approx(peak, abs=0.05)
    assert plan.host_loading == plan.host  # bfloat16 files, mapped


@pytest.mark.gpu
def test_peak_on_a_gpu(settings):
    """Allocated memory, without the context and the allocator's reserve, which the plan keeps free besides."""
    sizes = {"height": 256, "width": 256}
    model = {"path": None, "preset": "small", "dtype": "bfloat16"}
    recipe = recipe_of(settings, model=model, rollout=sizes, trainer={"per_device_train_batch_size": 16})
    plan = plan_of(recipe)
    torch.cuda.reset_peak_memory_stats()
    train(recipe)
    measured = torch.cuda.max_memory_allocated()
    assert 0.6 * measured < plan.peak < 1.6 * measured
