"""A small recipe to plan, and its plan."""

import functools

from rl.config.model import ModelSection
from rl.config.recipe import recipe_from_mapping
from rl.plan.estimate import GIB, Plan, make_plan
from rl.plan.planned_model import planned_model
from rl.plan.simulation import Simulation


def planned_settings(nano_checkpoint, tmp_path) -> dict:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a red circle"}\n')
    return {
        "model": {"path": str(nano_checkpoint), "dtype": "float32"},
        "data": {"prompts": str(tmp_path / "prompts.jsonl")},
        "rollout": {"height": 64, "width": 64, "samples_per_prompt": 4},
        "decode": {"num_inference_steps": 2, "batch_size": 4},
        "rewards": ["color"],
        "trainer": {"max_steps": 1, "save_strategy": "no", "per_device_train_batch_size": 4},
        "output_dir": str(tmp_path / "run"),
    }


def recipe_of(settings: dict, **sections: dict):
    return recipe_from_mapping({**settings, **{key: {**settings.get(key, {}), **sections[key]} for key in sections}})


def plan_of(recipe, gpus: int = 1, memory: int = 80 * GIB, prefix: int = 64) -> Plan:
    return make_plan(recipe, simulation_of(recipe.model), gpus, memory, prefix)


@functools.cache
def simulation_of(section: ModelSection) -> Simulation:
    return Simulation(planned_model(section))
