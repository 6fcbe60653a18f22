"""`uniar-rl plan` of several turns per sample, and when a reference that waits on the CPU is there."""

import pytest
from support.planned_recipes import plan_of, planned_settings, recipe_of


@pytest.fixture
def settings(nano_checkpoint, tmp_path) -> dict:
    return planned_settings(nano_checkpoint, tmp_path)


@pytest.mark.parametrize(
    ("sections", "phases"),
    [
        ({}, {"decode", "replay"}),
        ({"rollout": {"dynamic_sampling": {"max_rounds": 2}}}, {"replay"}),
        ({"understanding": {"kl_beta": 0.1, "kl_questions": "questions.jsonl"}}, {"decode", "replay", "update"}),
        ({"algorithm": {"beta": 0}, "understanding": {"kl_beta": 0.1, "kl_questions": "questions.jsonl"}}, {"update"}),
    ],
    ids=["", "dynamic sampling", "text KL", "text KL alone"],
)
def test_a_reference_on_the_cpu_comes_when_it_is_asked(settings, sections, phases):
    plan = plan_of(recipe_of(settings, **{**sections, "model": {"reference_device": "cpu"}}))
    (part,) = (part for part in plan.parts if part.name == "reference")
    assert part.phases == phases


def test_the_output_layer_of_a_reference_that_compares_vocabularies_stays(settings):
    sections = {"rollout": {"episodes": {"default": "answer"}}, "model": {"reference_device": "cpu"}}
    exact, sampled = (
        plan_of(recipe_of(settings, **sections, algorithm={"text": {"kl": kind}})) for kind in ("exact", "k3")
    )
    assert exact.part("output layer of the reference") > 0
    assert not sampled.part("output layer of the reference")


def test_a_recipe_is_planned_for_the_turns_that_it_trains(settings):
    plans = {
        name: plan_of(recipe_of(settings, rollout={"episodes": {"default": name}, "max_new_tokens": 400}))
        for name in ("draw", "answer", "think_draw", "draw_check_redraw")
    }
    drawing, writing, both, redrawn = plans.values()
    assert redrawn.part("rollout data") == 2 * both.part("rollout data")
    assert redrawn.part("activations") > 1.2 * both.part("activations")
    assert redrawn.part("text activations") > both.part("text activations")  # the conversation has a picture more
    assert redrawn.held("rollout") > both.held("rollout")
    assert not drawing.part("text activations")
    assert not writing.part("activations") + writing.part("rollout data")
    assert both.part("rollout data") == drawing.part("rollout data") > 0
    assert both.part("texts") == writing.part("texts") > 0
    # A sample's only turn shares the prompt with others; with two turns, one of them has a prefix of its own.
    assert both.part("activations") > 1.1 * drawing.part("activations") > 0
    assert both.part("text activations") > writing.part("text activations") > 0
    # The engine draws and writes in turns; the two replays come one after the other.
    assert both.part("KV caches") == max(drawing.part("KV caches"), writing.part("KV caches"))
    assert both.part("replay activations") >= max(
        drawing.part("replay activations"), writing.part("replay activations")
    )
    assert drawing.parameters["trained"] < both.parameters["trained"]
    longer = plan_of(recipe_of(settings, rollout={"episodes": {"default": "answer"}, "max_new_tokens": 800}))
    assert longer.part("text activations") < 4 * writing.part("text activations")
    assert longer.part("texts") == 2 * writing.part("texts")
