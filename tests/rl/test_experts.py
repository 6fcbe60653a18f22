"""What distillation minimises, whose policy that is measured from, and experts that cannot be."""

import json
import shutil

import pytest
import torch
from support.training_runs import changed, small_recipe

from rl.algorithm.guidance import Gaps, GuidanceSettings
from rl.algorithm.losses import LossInputs, policy_loss
from rl.cli import main
from rl.config.distill import ExpertSection
from rl.config.recipe import recipe_from_mapping
from rl.trainer.build import training_prompts

SHAPE = (3, 5, 2, 4, 2)


@pytest.fixture
def settings(nano_checkpoint, tmp_path) -> dict:
    recipe = changed(small_recipe(nano_checkpoint, tmp_path), distill={"experts": {"default": {}}})
    return {**recipe, "rewards": []}


def drawn(seed: int) -> Gaps:
    generator = torch.Generator().manual_seed(seed)
    return Gaps(*(2 * torch.randn(SHAPE, dtype=torch.float64, generator=generator) for _ in range(2)))


def loss_of(recipe, student: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
    """Of an update's pictures, as the step has them: advantages of 0."""
    bits = (torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) < 0.5).to(torch.uint8)
    inputs = LossInputs(
        bits=bits, gap=student, ref_gap=expert, old_gap=student.detach() + 0.1, advantages=torch.zeros(3)
    )
    return policy_loss(inputs, recipe.algorithm.loss_settings)[0]


def mean_divergence(student: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
    """Σ KL(Bernoulli(σ(d)) ‖ Bernoulli(σ(d_e))) / bits, by torch's own."""
    one, other = (torch.distributions.Bernoulli(logits=gap) for gap in (student, expert))
    return torch.distributions.kl_divergence(one, other).mean()


# Whatever the base says of the loss on rewards, and a policy that has moved since it drew.
@pytest.mark.parametrize("algorithm", [{}, {"loss": "gspo", "beta": 0.05, "kl": "k3"}, {"loss": "cispo", "beta": 0}])
def test_the_loss_and_its_gradient_are_those_of_the_divergence(settings, algorithm):
    recipe = recipe_from_mapping(changed(settings, algorithm=algorithm))
    expert = ExpertSection(guidance_scale=2.0, temperature=0.5).guidance(GuidanceSettings()).policy_gap(drawn(1))
    student = drawn(2).cond.requires_grad_()
    loss = loss_of(recipe, student, expert)
    assert loss.item() == pytest.approx(mean_divergence(student, expert).item(), rel=1e-8)
    (gradient,) = torch.autograd.grad(loss, student)
    step = 1e-6
    for place in [(0, 0, 0, 0, 0), (1, 3, 1, 2, 0), (2, 4, 0, 3, 1)]:
        ends = []
        for sign in (1, -1):
            beside = student.detach().clone()
            beside[place] += sign * step
            ends.append(mean_divergence(beside, expert))
        assert gradient[place].item() == pytest.approx(((ends[0] - ends[1]) / (2 * step)).item(), rel=1e-5, abs=1e-12)


def test_nothing_is_learnt_from_oneself(settings):
    student = drawn(1).cond.requires_grad_()
    loss = loss_of(recipe_from_mapping(settings), student, student.detach())
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, student)[0].any()


@pytest.mark.parametrize(
    ("section", "student", "expected"),
    [
        ({}, ("guided", 2.0, 0.5), ("guided", 2.0, 0.5)),
        ({"temperature": 1.0}, ("none", 1.0, 0.5), ("none", 1.0, 1.0)),
        ({"guidance_scale": 3.0}, ("none", 1.0, 1.0), ("guided", 3.0, 1.0)),
        ({"guidance_scale": 3.0}, ("conditional", 2.0, 1.0), ("guided", 3.0, 1.0)),
        ({"guidance_scale": 1.0}, ("guided", 2.0, 0.5), ("none", 1.0, 0.5)),
    ],
)
def test_whose_policy_an_expert_is(section, student, expected):
    assert ExpertSection(**section).guidance(GuidanceSettings(*student)) == GuidanceSettings(*expected)


def refused(capsys, settings: dict, folder, *overrides: str, command: str = "distill") -> str:
    """The one sentence that the command ends with."""
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(settings, indent=1))
    assert main([command, str(path), *overrides]) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("uniar-rl ")]
    return said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("distill={experts: {}}", "distill.experts is empty"),
        ("distill={by: task}", "distill.experts is missing"),
        ("distill.experts.colour={}", "no prompt has the task 'colour'; the tasks are color. Did you mean 'color'?"),
        ("distill={experts: {color: {}}, by: tag}", "no prompt has the tag 'color'; the tags are none."),
        (
            "distill.experts.default.path=/no/such",
            "distill.experts.default.path: there is no checkpoint folder /no/such",
        ),
        ("distill.experts.default.guidance_scale=0.5", "distill.experts.default.guidance_scale is 0.5"),
        ("rollout.dynamic_sampling={}", "rollout.dynamic_sampling is set, and distill"),
        ("algorithm.kl_control={target: 0.1}", "algorithm.kl_control is set, and distill"),
        ("algorithm.reference_refresh={every: 1}", "algorithm.reference_refresh is set, and distill"),
        ("watch.no_variance_steps=3", "watch.no_variance_steps is set, and distill"),
        ("evaluate={prompts: p.jsonl}", "eval_rewards is empty, and evaluations need one"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(settings, tmp_path, capsys, override, said):
    assert said in refused(capsys, settings, tmp_path, override)


def test_without_experts_there_is_nothing_to_distill(settings, tmp_path, capsys):
    said = refused(capsys, {**settings, "distill": None, "rewards": ["compressibility"]}, tmp_path)
    assert "recipe.yaml has no section distill, which names the experts" in said
    assert "rewards is empty" in refused(capsys, settings, tmp_path, "distill=null", command="train")


def test_a_prompt_without_an_expert(settings, tmp_path, capsys):
    lines = [{"prompt": "a", "task": "color"}, *({"prompt": text, "task": "shape"} for text in "bcd"), {"prompt": "e"}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = refused(capsys, {**settings, "distill": {"experts": {"color": {}}}}, tmp_path)
    assert "prompts.jsonl, line 2 has the task 'shape', which has no expert; name one, or a default." in said
    said = refused(capsys, {**settings, "distill": {"experts": {"color": {}, "shape": {}}}}, tmp_path)
    assert "prompts.jsonl, line 5 has no task, which has no expert" in said


def test_an_expert_of_other_tokens(settings, nano_checkpoint, tmp_path, capsys):
    folder = shutil.copytree(nano_checkpoint, tmp_path / "expert")
    experts = {"distill": {"experts": {"default": {"path": str(folder)}}}}
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (one, first), (other, second) = list(tokenizer["model"]["vocab"].items())[:2]
    tokenizer["model"]["vocab"] |= {one: second, other: first}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "has another tokenizer than the student" in refused(capsys, changed(settings, **experts), tmp_path)


def test_an_expert_of_other_bits(settings, golden, tmp_path, capsys):
    experts = {"distill": {"experts": {"default": {"path": str(golden("bsq8").checkpoint)}}}}
    said = (
        "has visual tokens of (levels, patches, bits) (4, 4, 8), and the student (3, 4, 8); an expert needs the same."
    )
    assert said in refused(capsys, changed(settings, **experts), tmp_path)


def test_rewards_of_a_base_are_those_of_evaluations(settings):
    one, other = [{"use": "compressibility"}], [{"use": "color", "color": "red"}]
    for given, expected in (({"rewards": one}, one), ({"rewards": one, "eval_rewards": other}, other)):
        recipe = recipe_from_mapping({**settings, **given})
        assert (recipe.rewards, recipe.eval_rewards) == ([], expected)
        assert recipe_from_mapping(recipe.to_mapping()) == recipe


def test_how_many_models_experts_are(settings):
    def models(experts: dict, **model) -> int:
        recipe = recipe_from_mapping({**changed(settings, model=model), "distill": {"experts": experts}})
        return recipe.distill.models(recipe.model)

    own = {"path": settings["model"]["path"]}
    two = {"a": own, "b": {"guidance_scale": 2.0}, "default": {"path": "elsewhere"}, "c": {"path": "elsewhere"}}
    assert (models({"default": {}}), models(two)) == (1, 2)
    # Under LoRA the model that training starts from is the policy without its adapters.
    assert (models({"default": {}}, lora={}), models(two, lora={})) == (0, 1)


def test_prompts_are_chosen_by_tag(settings, tmp_path, capsys):
    tags = {"a": "position", "b": "colors", "c": "position", "d": None}
    lines = [{"prompt": text, "metadata": {"tag": tag}} for text, tag in tags.items()]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = recipe_from_mapping(changed(settings, data={"tags": ["position"]}))
    assert [record.prompt for record in training_prompts(recipe)] == ["a", "c"]
    said = refused(capsys, settings, tmp_path, "data.tags=[positon]")
    assert "data.tags: no prompt has the tag 'positon'; the tags are colors, position. Did you mean 'position'?" in said
    assert "data.tags: an empty list leaves no prompts" in refused(capsys, settings, tmp_path, "data.tags=[]")
