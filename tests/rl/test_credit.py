"""Which bits an advantage goes to, and what the reference of the KL term draws at."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.training_runs import changed, launch, require_same, run, small_recipe

from rl.algorithm import bernoulli
from rl.algorithm.credit import MOST, prompt_credit
from rl.algorithm.guidance import Gaps, GuidanceSettings
from rl.algorithm.losses import LossInputs, LossSettings, policy_loss
from rl.config.measured_from import MeasuredFrom
from rl.config.recipe import load_recipe
from uniar.errors import UserError

SHAPE = (3, 4, 2, 4, 3)  # B, T, L, S, K
GUIDED = GuidanceSettings("guided", scale=1.5, temperature=0.8)


def random_gaps(seed=0) -> Gaps:
    noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return Gaps(2 * noise[0], 2 * noise[0] + noise[1])


def by_hand(gaps: Gaps, guidance: GuidanceSettings) -> np.ndarray:
    """One image, one token and one bit after the other, in float64."""
    cond, uncond = (part.double().numpy() for part in gaps)
    credit = np.zeros(SHAPE)
    for image in range(SHAPE[0]):
        spent = available = 0.0
        for token in range(SHAPE[1]):
            for bit in np.ndindex(*SHAPE[2:]):
                at = (image, token, *bit)
                changes = [
                    abs(1 / (1 + np.exp(-cond[image, token][other])) - 1 / (1 + np.exp(-uncond[image, token][other])))
                    for other in np.ndindex(*SHAPE[2:])
                ]
                own = abs(1 / (1 + np.exp(-cond[at])) - 1 / (1 + np.exp(-uncond[at])))
                drawn = (uncond[at] + guidance.scale * (cond[at] - uncond[at])) / guidance.temperature
                p = 1 / (1 + np.exp(-drawn))
                credit[at] = np.sqrt(own * sum(changes))
                spent, available = spent + credit[at] ** 2 * p * (1 - p), available + p * (1 - p)
        credit[image] *= np.sqrt(available / spent)
    return credit


def test_credit_is_what_its_formula_says():
    gaps = random_gaps()
    np.testing.assert_allclose(prompt_credit(gaps, GUIDED).numpy(), by_hand(gaps, GUIDED), rtol=1e-4)


def test_credit_keeps_the_expected_square_of_the_gradient_over_the_gaps():
    """E[(b - p)²] = p(1 - p), and the advantage is the image's."""
    gaps = random_gaps()
    credit, p = prompt_credit(gaps, GUIDED).double(), GUIDED.drawn_gap(gaps).double().sigmoid()
    variance = p * (1 - p)
    torch.testing.assert_close((credit**2 * variance).flatten(1).sum(1), variance.flatten(1).sum(1))


def test_credit_of_an_image_does_not_depend_on_those_beside_it():
    """So an update may be split over micro-batches and processes in any way."""
    gaps = random_gaps()
    alone = [prompt_credit(Gaps(*(part[row : row + 1] for part in gaps)), GUIDED) for row in range(SHAPE[0])]
    assert torch.equal(torch.cat(alone), prompt_credit(gaps, GUIDED))


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_credit_is_finite_where_the_prompt_changes_nothing_or_everything(size):
    cond = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    credit = prompt_credit(Gaps(cond + size, cond), GUIDED)
    assert credit.isfinite().all()
    assert (credit >= 0).all()
    if size < 1:
        assert torch.equal(credit, torch.ones(SHAPE))


@pytest.mark.parametrize("gap", [4.0, 8.0])
def test_credit_of_a_handful_of_bits_is_bounded(gap):
    """As large as the image of a released model, and the prompt changes 8 bits of one visual token."""
    uncond = 2 * torch.randn(1, 256, 4, 4, 64, generator=torch.Generator().manual_seed(3))
    uncond.view(-1)[:8] = 0.0
    cond = uncond.clone()
    cond.view(-1)[:8] = gap
    credit = prompt_credit(Gaps(cond, uncond), GUIDED)
    assert credit.view(-1)[:8].tolist() == [MOST] * 8
    assert not credit.view(-1)[8:].any()
    cond[:, 0] = uncond[:, 0] + 1.0  # all bits of the token
    assert prompt_credit(Gaps(cond, uncond), GUIDED).max() < MOST


def test_credit_needs_both_branches():
    with pytest.raises(ValueError, match="unconditional"):
        prompt_credit(Gaps(torch.zeros(SHAPE), None), GUIDED)


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "cispo", "dppo_tv"])
def test_each_bits_gradient_is_multiplied_by_its_credit_and_no_more(loss):
    gaps, generator = random_gaps(), torch.Generator().manual_seed(2)
    bits = torch.randint(2, SHAPE, generator=generator)
    credit = prompt_credit(gaps, GUIDED)

    def gradient(**weights) -> torch.Tensor:
        gap = GUIDED.policy_gap(gaps).double().requires_grad_()
        inputs = LossInputs(advantages=torch.tensor([1.3, -0.8, 0.4]), bits=bits, gap=gap, **weights)
        policy_loss(inputs, LossSettings(loss, level="bit"))[0].backward()
        assert gap.grad is not None
        return gap.grad

    torch.testing.assert_close(gradient(credit=credit), gradient() * credit.double())


def test_credit_leaves_the_kl_term_alone():
    gap, credit = random_gaps().cond.double(), prompt_credit(random_gaps(), GUIDED)
    nothing, bits = torch.zeros(SHAPE[0]), torch.zeros(SHAPE)
    of = [
        policy_loss(
            LossInputs(advantages=nothing, bits=bits, gap=gap.requires_grad_(), ref_gap=gap.detach() + 1, credit=each),
            LossSettings("grpo", beta=1.0),
        )[0].item()
        for each in (None, credit)
    ]
    assert of[0] == of[1] > 0


def test_a_reference_may_be_guided_further_and_draw_with_less_randomness():
    gaps = random_gaps()
    reference = MeasuredFrom(guidance_scale=3.0, temperature=0.5).guidance(GUIDED)
    torch.testing.assert_close(reference.policy_gap(gaps), (gaps.uncond + 3 * (gaps.cond - gaps.uncond)) / 0.5)
    assert MeasuredFrom().guidance(GUIDED) == GUIDED


def test_a_run_measures_from_the_reference_at_its_own_settings(nano_checkpoint, tmp_path):
    """The KL of the first update: 0 from the reference at the rollout's settings, else what the drawn gaps say."""
    settings = changed(
        small_recipe(nano_checkpoint, tmp_path),
        trainer={"max_steps": 1, "save_strategy": "no"},
        rollout={"guidance": "guided", "guidance_scale": 2.0},
        algorithm={"beta": 0.1, "credit": "prompt"},
    )

    def first(name: str, **reference) -> dict[str, float]:
        recipe = changed(settings, algorithm={"reference": reference}) | {"output_dir": str(tmp_path / name)}
        run(recipe)
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return next(line for line in lines if "kl" in line)

    same, sharper = first("same"), first("sharper", temperature=0.5)
    assert same["kl"] < 1e-9 < 1e-4 < sharper["kl"]
    assert same["entropy"] == sharper["entropy"]  # the same drawings
    # Of gaps d and 2d: between the sharpest and the most undecided of bits with that entropy.
    assert sharper["kl"] < float(bernoulli.kl(torch.tensor(1.5), torch.tensor(3.0)))


def test_a_policy_without_guidance_may_be_drawn_to_a_guided_reference(nano_checkpoint, tmp_path):
    settings = changed(
        small_recipe(nano_checkpoint, tmp_path),
        trainer={"max_steps": 1, "save_strategy": "no"},
        rollout={"guidance": "none", "guidance_scale": 1.0},
        algorithm={"beta": 0.1, "reference": {"guidance_scale": 3.0}},
    )
    run(settings)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert next(line for line in lines if "kl" in line)["kl"] > 1e-6


def test_credit_where_a_pass_has_no_picture(nano_checkpoint, tmp_path):
    """Drawings and answers, a sample per micro-batch; what stands in for a picture was drawn by nobody."""
    settings = changed(
        small_recipe(nano_checkpoint, tmp_path),
        trainer={
            "max_steps": 1,
            "save_strategy": "no",
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 4,
        },
        rollout={
            "guidance": "conditional",
            "guidance_scale": 2.0,
            "samples_per_prompt": 2,
            "max_new_tokens": 2,
            "episodes": {"vqa": "answer"},
        },
        algorithm={"credit": "prompt"},
    )
    rows = [{"prompt": "a red square", "task": "color"}, {"prompt": "is it red?", "task": "vqa"}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(settings | {"rewards": [{**settings["rewards"][0], "tasks": ["color"]}]})
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert next(line for line in lines if "entropy" in line)["guidance/mismatch"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rollout", "algorithm"),
    [
        ({"guidance": "guided", "guidance_scale": 2.0}, {"credit": "prompt"}),
        ({"guidance": "none", "guidance_scale": 1.0}, {"reference": {"guidance_scale": 3.0}}),
    ],
    ids=["credit", "guided reference"],
)
def test_two_processes_are_one(nano_checkpoint, tmp_path, rollout, algorithm):
    settings = changed(small_recipe(nano_checkpoint, tmp_path), rollout=rollout, algorithm={"beta": 0.1, **algorithm})
    one = run(settings)
    trainer = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    two, _ = launch(settings, 2, trainer=trainer, output_dir=str(tmp_path / "two"))
    require_same(two, one, 3)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["rollout.guidance=none"], "set rollout.guidance_scale to 1 and algorithm.credit to null, or for guidance"),
        (["rollout.guidance=none", "rollout.guidance_scale=1"], "is prompt.*; set algorithm.credit to null"),
        (["algorithm.loss=gspo"], "ratio_level is sequence with algorithm.loss gspo; set algorithm.credit to null"),
        (["algorithm.ratio_level=visual_token"], "algorithm.ratio_level is visual_token"),
        (["algorithm.beta=0"], "algorithm.beta is 0: nothing.*; set algorithm.reference.guidance_scale to null"),
        (["algorithm.reference_refresh={every: 5}"], "each refresh would guide"),
        (["algorithm.reference.temperature=1e-30"], "algorithm.reference.temperature"),
        (["rollout.temperature=1e-30"], "rollout.temperature"),
        (["algorithm.reference.temperature=0"], "algorithm.reference.temperature"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_with_what_to_set(overrides, said):
    recipe = Path("configs/quickstart.yaml")
    given = ["algorithm.credit=prompt", "algorithm.reference.guidance_scale=3", *overrides]
    with pytest.raises(UserError, match=said):
        load_recipe(recipe, given)


@pytest.mark.parametrize(
    "overrides",
    [
        ["rollout.guidance=none", "rollout.guidance_scale=1", "algorithm.credit=null"],
        ["algorithm.loss=gspo", "algorithm.credit=null"],
        ["algorithm.beta=0", "algorithm.reference.guidance_scale=null"],
        ["algorithm.beta=0", "algorithm.reference=null"],
    ],
)
def test_what_the_sentences_say_is_enough(overrides):
    load_recipe(Path("configs/quickstart.yaml"), overrides)
