"""`self_vqa`: the visual bits read back by UniAR itself, frozen or as it is trained."""

from contextlib import nullcontext

import pytest
import torch
from PIL import Image
from support.reference_towers import random_images
from support.training_runs import SMALL_DRAWING, changed, deepspeed, launch, logged, run, small_recipe

from rewards import RewardBatch, RewardError, RewardSuite
from rewards.vqa.self_vqa import SelfVQA, token_grid
from rl.data.prompts import PromptRecord
from rl.evaluation.evaluate import Evaluator
from rl.scoring.scorer import LocalScorer, ScoredList
from uniar.errors import UserError

PROMPTS = ["a red square", "two blue circles on a green star", "a red square"]
YES = ["Y", "y"]  # the tiny tokenizer has no "Yes"


def entry(judge, **parameters):
    return {"use": "self_vqa", "judge": str(judge), "device": "cpu", "dtype": "float32", "answers": YES, **parameters}


def random_bits(model, count=3, tokens=6, seed=0):
    shape = (count, tokens, *model.config.vision_config.code_shape)
    return torch.randint(0, 2, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def batch_of(model, **changes):
    """96×64 pixels: 2 × 3 visual tokens."""
    images = [Image.new("RGB", (96, 64))] * 3
    return RewardBatch(PROMPTS, images, bits=random_bits(model), **changes)


def expected_probabilities(model, processor, batch, ids):
    """One sample at a time, through `generate`."""
    found = []
    for prompt, bits in zip(batch.prompts, batch.bits, strict=True):
        text = (
            f"<|im_start|>user\n<|vision_start|>{'<|image_pad|>' * 6}<|vision_end|>Does this figure show "
            f'"{prompt}"? Please answer Yes or No.<|im_end|>\n<|im_start|>assistant\n'
        )
        inputs = processor.tokenizer([text], return_tensors="pt")
        out = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            visual_bits=bits,
            image_grid_thw=torch.tensor([[1, 4, 6]]),
            max_new_tokens=1,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        shares = torch.softmax(out.logits[0][0].double(), dim=0)
        found.append(sum(shares[token].item() for token in ids))
    return found


def test_self_vqa_is_the_probability_of_yes(nano_checkpoint, nano_model, nano_processor):
    batch = batch_of(nano_model)
    ids = nano_processor.tokenizer.convert_tokens_to_ids(YES)
    expected = expected_probabilities(nano_model, nano_processor, batch, ids)
    assert max(expected) > 1.01 * min(expected)
    table = RewardSuite.from_recipe([entry(nano_checkpoint)]).score(batch)
    assert table.values[:, 0].tolist() == pytest.approx(expected, rel=1e-4)
    assert table.details["self_vqa"][1]["question"].startswith('Does this figure show "two blue circles')
    one_by_one = RewardSuite.from_recipe([entry(nano_checkpoint, batch_size=1)]).score(batch)
    assert one_by_one.values[:, 0].tolist() == pytest.approx(expected, rel=1e-4)


def test_reading_bits_is_looking_at_the_image(nano_checkpoint, nano_model, nano_processor):
    """vqa_score with the same model on pixels, self_vqa on the bits that these pixels become."""
    images = random_images((96, 64), (96, 64), (96, 64))
    inputs = nano_processor.image_processor(images, return_tensors="pt")
    bits = nano_model.model.visual.encode(inputs["pixel_values"], inputs["image_grid_thw"]).unflatten(0, (3, 6))
    batch = RewardBatch(PROMPTS, images, bits=bits)
    looking = {"use": "vqa_score", "model": str(nano_checkpoint), "device": "cpu", "dtype": "float32", "answers": YES}
    table = RewardSuite.from_recipe([entry(nano_checkpoint), looking]).score(batch)
    assert table.column("self_vqa").tolist() == pytest.approx(table.column("vqa_score").tolist(), rel=1e-4)
    other = RewardBatch(PROMPTS, images, bits=1 - bits)
    changed = RewardSuite.from_recipe([entry(nano_checkpoint)]).score(other).column("self_vqa")
    assert changed.tolist() != pytest.approx(table.column("self_vqa").tolist(), rel=1e-3)


def test_of_an_edit_it_sees_the_picture_before_and_the_bits(nano_checkpoint, nano_model, nano_processor):
    """Against `generate`, with the whole conversation written out; the second sample edits nothing."""
    sources = random_images((96, 64), (96, 64))
    batch = batch_of(nano_model, source_images=[[sources[0]], [], [sources[1]]])
    ids = nano_processor.tokenizer.convert_tokens_to_ids(YES)
    expected = expected_probabilities(nano_model, nano_processor, batch, ids)
    for row in (0, 2):
        picture = f"<|vision_start|>{'<|image_pad|>' * 6}<|vision_end|>"
        text = (
            f'<|im_start|>user\n{picture}{picture}The first picture was to be edited: "a red square". Is the second '
            "picture that edit, with everything else as it was? Please answer Yes or No.<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        seen = nano_processor.image_processor(batch.source_images[row], return_tensors="pt")
        before = nano_model.model.visual.encode(seen["pixel_values"], seen["image_grid_thw"])
        out = nano_model.generate(
            **nano_processor.tokenizer([text], return_tensors="pt"),
            visual_bits=torch.cat([before, batch.bits[row]]),
            image_grid_thw=torch.tensor([[1, 4, 6]] * 2),
            max_new_tokens=1,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        expected[row] = torch.softmax(out.logits[0][0].double(), dim=0)[ids].sum().item()
    suite = RewardSuite.from_recipe(
        [entry(nano_checkpoint), {**entry(nano_checkpoint, edit_question=None), "name": "plain"}]
    )
    table = suite.score(batch)
    assert table.column("self_vqa").tolist() == pytest.approx(expected, rel=1e-4)
    assert [said["question"].startswith("The first") for said in table.details["self_vqa"]] == [True, False, True]
    assert table.column("plain")[0].item() != pytest.approx(expected[0], rel=1e-3)
    one_by_one = RewardSuite.from_recipe([entry(nano_checkpoint, batch_size=1)]).score(batch)
    assert one_by_one.values[:, 0].tolist() == pytest.approx(expected, rel=1e-4)


def test_a_judge_of_its_own_keeps_only_what_reads(nano_checkpoint):
    reward = SelfVQA(str(nano_checkpoint), answers=YES)
    reward.load()
    assert {parameter.dtype for parameter in reward._model.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in reward._model.parameters())
    assert not [name for name, _ in reward._model.named_parameters() if "vistok" in name or "visual_decoder" in name]
    assert [name for name, _ in reward._model.named_parameters() if "visual.blocks" in name]  # that see what is edited
    bits_alone = SelfVQA(str(nano_checkpoint), answers=YES, edit_question=None)
    bits_alone.load()
    assert not [name for name, _ in bits_alone._model.named_parameters() if "visual.blocks" in name]
    reward.to("meta")  # stands for a GPU here
    assert {parameter.device.type for parameter in reward._model.parameters()} == {"meta"}


def test_the_current_policy_is_asked_as_it_is_now(nano_checkpoint, nano_model, nano_processor):
    batch = batch_of(nano_model)
    suite = RewardSuite.from_recipe([entry(nano_checkpoint), {**entry("policy"), "name": "now"}])
    with suite.bound(nullcontext(nano_model), nano_processor):
        before = suite.score(batch)
        with torch.no_grad():
            nano_model.lm_head.weight.mul_(1.5)
        after = suite.score(batch)
    assert before.column("now").tolist() == pytest.approx(before.column("self_vqa").tolist(), rel=1e-5)
    assert torch.equal(after.column("self_vqa"), before.column("self_vqa"))
    assert not torch.allclose(after.column("now"), before.column("now"), rtol=1e-3)
    assert hasattr(nano_model, "output_layer_vistok")
    with pytest.raises(RewardError, match="judge: policy works in training and evaluation only"):
        suite.score(batch)


def test_scoring_with_the_policy_leaves_it_trainable(nano_model, nano_processor):
    suite = RewardSuite.from_recipe([entry("policy")])
    with suite.bound(nullcontext(nano_model), nano_processor):
        suite.score(batch_of(nano_model))
    ids = torch.tensor([[1, 2, 3]])
    nano_model(input_ids=ids).logits.sum().backward()
    assert nano_model.lm_head.weight.grad is not None


def test_a_suite_without_need_of_the_policy_does_not_enter_its_context(nano_checkpoint):
    class Refuses:
        def __enter__(self):
            raise AssertionError("entered")

        def __exit__(self, *_):
            raise AssertionError("left")

    suite = RewardSuite.from_recipe([entry(nano_checkpoint), "compressibility"])
    with suite.bound(Refuses(), None):
        assert [reward.wants_policy for reward in suite.rewards] == [False, False]


def test_an_evaluation_binds_the_model_it_evaluates(nano_checkpoint, nano_model, nano_processor, nano_decoder):
    suite = RewardSuite.from_recipe([entry(nano_checkpoint), {**entry("policy"), "name": "now"}])
    records = [PromptRecord(prompt, id=str(number)) for number, prompt in enumerate(PROMPTS)]
    scorer = LocalScorer(nano_decoder, ScoredList(suite, SMALL_DRAWING), nano_processor)
    held_out = Evaluator(records, nano_processor, scorer, SMALL_DRAWING)
    evaluation = held_out.run(nano_model)
    assert evaluation.values[:, 0].tolist() == pytest.approx(evaluation.values[:, 1].tolist(), rel=1e-4)
    assert [row["question"] for row in evaluation.details["now"]] == [
        f'Does this figure show "{prompt}"? Please answer Yes or No.' for prompt in PROMPTS
    ]


@pytest.mark.slow
def test_zero3_does_not_share_out_a_judge(nano_checkpoint, tmp_path):
    """Its weights are whole in every process: whatever is loaded in a run under ZeRO-3 may be taken for the policy."""
    settings = changed(small_recipe(nano_checkpoint, tmp_path), rewards=[entry(nano_checkpoint)])
    settings = changed(settings, trainer={"max_steps": 1, "save_strategy": "no"})
    one = run(settings, output_dir=str(tmp_path / "one"))
    trainer = {"deepspeed": deepspeed("zero3"), "per_device_train_batch_size": 4}
    two, _ = launch(settings, 2, trainer=trainer, output_dir=str(tmp_path / "two"))
    assert logged(two, "reward") == pytest.approx(logged(one, "reward"), rel=1e-3)


def test_other_rewards_do_not_see_the_autocast_of_the_policy(nano_model, nano_processor):
    seen = []

    def plain(prompts, images):
        seen.append(torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype)
        return [0.0] * len(prompts)

    from rewards import RewardSpec

    own = entry("policy")
    specs = [RewardSpec.from_mapping(own), RewardSpec(plain)]
    suite = RewardSuite(specs)
    with torch.autocast("cpu", torch.bfloat16), suite.bound(nullcontext(nano_model), nano_processor):
        values = suite.score(batch_of(nano_model)).values
    assert seen == [torch.float32]
    assert not values.isnan().any()


def test_the_grid_follows_the_shape_of_the_image():
    assert token_grid(6, (96, 64)) == (2, 3)
    assert token_grid(6, (64, 96)) == (3, 2)
    assert token_grid(256, (1024, 1024)) == (16, 16)
    assert token_grid(256, (1024, 256)) == (8, 32)
    assert token_grid(7, (700, 100)) == (1, 7)
    assert token_grid(12, (590, 448)) == (3, 4)  # decoded at another size, rounded


def test_what_cannot_work_is_said(nano_checkpoint, nano_model, tmp_path):
    with pytest.raises(UserError, match="parameter 'judge' is missing"):
        RewardSuite.from_recipe(["self_vqa"])
    with pytest.raises(UserError, match="there is no folder owner/nothing; as a hub id it is not in the cache"):
        RewardSuite.from_recipe([entry("owner/nothing")]).load()
    with pytest.raises(UserError, match=r"has no config\.json"):
        RewardSuite.from_recipe([entry(tmp_path)]).load()
    with pytest.raises(UserError, match="none of which is a single token"):
        RewardSuite.from_recipe([{"use": "self_vqa", "judge": str(nano_checkpoint)}]).load()
    batch = RewardBatch(["a"], [Image.new("RGB", (64, 64))])
    with pytest.raises(RewardError, match="reads visual bits, and this batch has none; vqa_score reads images"):
        RewardSuite.from_recipe([entry(nano_checkpoint)]).score(batch)
