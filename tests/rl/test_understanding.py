"""Held-out questions beside the drawings, and the text-KL term: measured, shared among processes, trained with."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.training_runs import deepspeed, launch, logged, run

from rl.cli import main
from rl.config.recipe import recipe_from_mapping
from rl.data.questions import QuestionRecord, load_questions
from rl.evaluation.understanding import Examiner, normalised
from rl.policy.text_kl import TextKL, categorical_kl
from rl.run.folder import RunFolder
from uniar.answering import answer, answer_log_probs, answer_logits
from uniar.errors import UserError

COLOURS = ("red", "blue", "green", "yellow", "pink")


def write_questions(file: Path, colours, question: str, answered: str) -> Path:
    for colour in colours:
        Image.new("RGB", (64, 64), colour).save(file.parent / f"{colour}.png")
    lines = [{"image": f"{c}.png", "question": question, "answer": answered.format(colour=c)} for c in colours]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture
def questions(tmp_path: Path) -> list[QuestionRecord]:
    return load_questions(
        write_questions(tmp_path / "questions.jsonl", COLOURS, "Which colour is it?", "It is {colour}.")
    )


@pytest.fixture
def settings(nano_checkpoint: Path, tmp_path: Path) -> dict:
    """A recipe of six updates that asks after the third and the last; tests change what they are about."""
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "a {c} square"}}\n' for c in COLOURS[:4]))
    held_out = write_questions(tmp_path / "held_out.jsonl", COLOURS[:3], "What colour is it?", "{colour}")
    trained_on = write_questions(tmp_path / "trained_on.jsonl", COLOURS[1:], "Which do you see?", "It is {colour}.")
    return {
        "model": {"path": str(nano_checkpoint), "dtype": "float32"},
        "data": {"prompts": str(tmp_path / "prompts.jsonl")},
        "rollout": {"height": 64, "width": 64, "samples_per_prompt": 4},
        "decode": {"num_inference_steps": 1, "batch_size": 16},
        "rewards": [{"use": "color", "color": "red", "softness": 0.6, "tolerance": 0.2}],
        "understanding": {
            "questions": str(held_out),
            "every": 3,
            "batch_size": 2,
            "max_new_tokens": 4,
            "kl_questions": str(trained_on),
            "kl_questions_per_update": 3,
        },
        "algorithm": {"beta": 0.0},
        "trainer": {
            "max_steps": 6,
            "save_strategy": "no",
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 8,
            "gradient_checkpointing": False,
        },
        "output_dir": str(tmp_path / "run"),
    }


# Questions -----------------------------------------------------------------------------------------------------------


def test_questions_are_read_in_order(tmp_path):
    file = write_questions(tmp_path / "questions.jsonl", COLOURS, "Which colour?", "{colour}")
    file.write_text(file.read_text().replace('"answer"', '"category": "colour", "answer"') + "\n")
    records = load_questions(file)
    assert [record.answer for record in records] == list(COLOURS)
    assert records[2].load_image().getpixel((5, 5)) == (0, 128, 0)
    (tmp_path / "elsewhere").mkdir()
    moved = file.rename(tmp_path / "elsewhere" / "questions.jsonl")
    assert load_questions(moved, tmp_path, limit=2) == records[:2]


BROKEN = {
    "missing image": ({"image": "gone.png"}, "line 2: the image '{folder}/gone.png' does not exist."),
    "missing field": (
        {"answer": None},
        "line 2: the field 'answer' is missing; a question has image, question, answer.",
    ),
    "misspelt field": ({"answer": None, "anwser": "red"}, "line 2: unknown field 'anwser'. Did you mean 'answer'?"),
    "wrong type": ({"answer": 3}, "line 2: 'answer' is 3 (a number), expected a string."),
    "empty text": ({"question": " "}, "line 2: 'question' is empty."),
    "token of a picture": (
        {"question": "see <|image_pad|>"},
        "line 2: 'question' contains <|image_pad|>, which has a meaning of its own to the model; leave it out.",
    ),
}


@pytest.mark.parametrize("key", ["questions", "kl_questions"])
@pytest.mark.parametrize("case", BROKEN)
def test_broken_questions_stop_the_run_before_it_starts(case, key, settings, tmp_path, capsys):
    change, sentence = BROKEN[case]
    file = write_questions(tmp_path / "broken.jsonl", ["red"], "Which?", "{colour}")
    line = {"image": "red.png", "question": "Which?", "answer": "red", **change}
    file.write_text(file.read_text() + json.dumps({k: v for k, v in line.items() if v is not None}) + "\n")
    said = refused(settings, tmp_path, capsys, f"understanding.{key}={file}", "understanding.kl_beta=1")
    assert said.startswith("uniar-rl train: ")
    assert said.endswith(f"{file}, {sentence.format(folder=tmp_path)}")


def test_other_bad_input(settings, tmp_path, capsys):
    (tmp_path / "empty.jsonl").write_text("\n")
    said = refused(settings, tmp_path, capsys, f"understanding.questions={tmp_path / 'empty.jsonl'}")
    assert said.endswith("empty.jsonl' are empty; at least one line with image, question, answer is needed.")
    said = refused(settings, tmp_path, capsys, "understanding.questions=none.jsonl")
    assert said.endswith("the file 'none.jsonl' does not exist.")
    said = refused(settings, tmp_path, capsys, "understanding.kl_beta=1", "understanding.kl_questions=null")
    assert "understanding.kl_beta is 1, and understanding.kl_questions is null" in said
    reward = "eval_rewards=[{use: compressibility, name: understanding}]"
    assert "is called 'understanding', which they use themselves" in refused(settings, tmp_path, capsys, reward)
    (tmp_path / "red.png").write_bytes(b"no picture")
    said = refused(settings, tmp_path, capsys)
    assert "line 1: the image '" in said
    assert "red.png' is not a whole picture in a format that is read (PNG, JPEG, " in said


def refused(settings: dict, tmp_path: Path, capsys, *overrides: str) -> str:
    (tmp_path / "recipe.yaml").write_text(json.dumps(settings))
    capsys.readouterr()
    assert main(["train", str(tmp_path / "recipe.yaml"), *overrides]) == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("uniar-rl train: ")]
    return said


# Evaluation ----------------------------------------------------------------------------------------------------------


def test_what_counts_as_the_same_answer():
    assert normalised(" Yes. ") == normalised("yes") == normalised("YES 。") == "yes"
    assert normalised("3.5") == "3.5"
    assert normalised("no") != normalised("yes")


def test_scores_of_each_question(questions, nano_model, nano_processor):
    """Against one question at a time; the first three want the model's own answers, in other spelling."""
    images = [record.load_image() for record in questions]
    texts = [record.question for record in questions]
    own = answer(nano_model, nano_processor, images, texts, max_new_tokens=4)
    questions = [
        QuestionRecord(record.image, record.question, f" {said.upper()}. " if number < 3 else record.answer)
        for number, (record, said) in enumerate(zip(questions, own, strict=True))
    ]
    found = Examiner(questions, nano_processor, batch_size=2, max_new_tokens=4).run(nano_model)
    assert found.answers == own
    expected_exact = [
        normalised(said) == normalised(record.answer) for said, record in zip(own, questions, strict=True)
    ]
    assert found.exact_match.tolist() == expected_exact
    assert expected_exact[3:] == [False, False]
    assert any(expected_exact[:3])
    for number, record in enumerate(questions):
        [log_probs] = answer_log_probs(
            nano_model, nano_processor, images[number : number + 1], texts[:1], [record.answer]
        )
        probability = math.exp(log_probs.double().sum())
        assert found.p_answer[number].item() == pytest.approx(probability, rel=1e-3)
        assert found.p_token[number].item() == pytest.approx(probability ** (1 / len(log_probs)), rel=1e-3)
    assert found.metrics()["eval_understanding/exact_match"] == pytest.approx(sum(expected_exact) / 5)
    assert found.metrics()["eval_understanding/p_answer"] == pytest.approx(found.p_answer.mean().item())


def test_each_process_asks_its_share_and_all_know_the_whole(questions, nano_model, nano_processor, monkeypatch):
    """Two processes played one after the other: the batches are those of one process, so the results are equal."""

    class Process:
        def __init__(self, index: int) -> None:
            self.process_index, self.num_processes = index, 2

    examiner = Examiner(questions, nano_processor, batch_size=2, max_new_tokens=2)
    alone = examiner.run(nano_model)
    shares: list = []

    def gather(found):
        shares.extend(found)
        if len(shares) == 1:
            raise InterruptedError  # the other process has yet to play its part
        return shares

    monkeypatch.setattr("rl.distributed.sharing.gather_object", gather)
    with pytest.raises(InterruptedError):
        examiner.run(nano_model, Process(0))
    together = examiner.run(nano_model, Process(1))
    assert [sorted(share) for share in shares] == [[0, 1, 3], [2, 4]]
    assert together.columns() == alone.columns()


# The text-KL term ----------------------------------------------------------------------------------------------------


def test_divergence_is_that_of_the_definition():
    generator = torch.Generator().manual_seed(0)
    logits, reference = (3 * torch.randn(5, 40, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = [
        sum(p * math.log(p / q) for p, q in zip(row.softmax(0).tolist(), other.softmax(0).tolist(), strict=True))
        for row, other in zip(logits, reference, strict=True)
    ]
    assert categorical_kl(logits, reference).tolist() == pytest.approx(expected, rel=1e-12)
    assert categorical_kl(logits, logits).tolist() == [0] * 5
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda given: categorical_kl(given, reference), logits)


def text_kl(questions, nano_model, nano_processor, questions_per_update: int = 3, seed: int = 0) -> TextKL:
    return TextKL(
        questions,
        nano_processor,
        nano_model.config,
        beta=1.0,
        questions_per_update=questions_per_update,
        seed=seed,
    )


def test_questions_of_an_update_depend_on_seed_and_update_alone(questions, nano_model, nano_processor):
    text = text_kl(questions, nano_model, nano_processor)
    chosen = [text.numbers(update) for update in range(5)]
    assert chosen == [text.numbers(update) for update in range(5)]
    in_a_row = [number for numbers in chosen for number in numbers]
    epochs = [in_a_row[start : start + 5] for start in (0, 5, 10)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]
    assert chosen != [text_kl(questions, nano_model, nano_processor, seed=1).numbers(update) for update in range(5)]


@pytest.mark.parametrize(("processes", "micro_batches"), [(1, 1), (2, 1), (4, 1), (1, 4), (2, 2), (8, 3)])
def test_every_process_runs_equally_often_and_each_question_is_asked_once(
    processes, micro_batches, questions, nano_model, nano_processor
):
    text = text_kl(questions, nano_model, nano_processor, questions_per_update=7)
    shares = [text.shares(2, process, processes, micro_batches) for process in range(processes)]
    assert len({len(share) for share in shares}) == 1
    assert len(shares[0]) == min(micro_batches, -(-7 // processes))
    asked = [number for share in shares for numbers in share for number in numbers]
    assert sorted(asked) == sorted(text.numbers(2))
    sizes = [len(numbers) for share in shares for numbers in share]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("processes", "micro_batches"), [(1, 1), (2, 1), (2, 2), (4, 3)])
def test_the_term_is_the_mean_over_positions_however_it_is_shared(
    processes, micro_batches, questions, nano_model, nano_processor, nano_checkpoint
):
    """Averaged over processes and micro-batches, it and its gradient are those of all answers in one batch."""
    from uniar.answering import encode_exchange
    from uniar.modeling_uniar import UniARForConditionalGeneration

    questions = [QuestionRecord(r.image, r.question, r.answer * (1 + n)) for n, r in enumerate(questions)]
    reference = UniARForConditionalGeneration.from_pretrained(nano_checkpoint)
    watched = nano_model.model.language_model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        for parameter in nano_model.parameters():
            parameter.mul_(1.02)

    text = text_kl(questions, nano_model, nano_processor, questions_per_update=3)
    records = [questions[number] for number in text.numbers(1)]
    exchange = encode_exchange(
        nano_processor,
        nano_model.config,
        [record.load_image() for record in records],
        [record.question for record in records],
        [record.answer for record in records],
    )
    with torch.no_grad():
        expected_logits = answer_logits(reference, exchange)
    whole = categorical_kl(answer_logits(nano_model, exchange), expected_logits)[exchange.answer_mask].mean()
    (gradient,) = torch.autograd.grad(whole, watched)

    total, summed = 0.0, torch.zeros_like(watched)
    for process in range(processes):
        text.begin(1, reference, nano_model.device, process=process, processes=processes, micro_batches=micro_batches)
        for _ in range(micro_batches):
            part = text.divergence(nano_model)
            if part is not None:
                total += part.item() / (processes * micro_batches)
                summed += torch.autograd.grad(part, watched)[0] / (processes * micro_batches)
        assert text.divergence(nano_model) is None
    assert whole > 1e-3
    assert total == pytest.approx(whole.item(), rel=1e-4)
    assert torch.allclose(summed, gradient, rtol=1e-3, atol=1e-6)


# Runs ----------------------------------------------------------------------------------------------------------------


def drift(folder: RunFolder) -> float:
    """Mean change of log P(answer) over the held-out questions, from before the first to after the last update."""
    found = dict(folder.evaluated("understanding"))
    first, last = (torch.tensor(found[step]["p_answer"]).log() for step in (min(found), max(found)))
    return (last - first).abs().mean().item()


def test_the_term_keeps_answers_that_drawing_alone_lets_drift(settings, tmp_path, capsys, whole_plots):
    free = run(settings, output_dir=str(tmp_path / "free"))
    assert set(dict(free.evaluated("understanding"))) == {0, 3, 6}
    assert not logged(free, "understanding/kl")
    settings["model"]["reference_device"] = "cpu"
    held = run(settings, understanding={"kl_beta": 1.0}, output_dir=str(tmp_path / "held"))
    assert drift(free) > 0.3
    assert drift(held) < 0.5 * drift(free)

    divergences = logged(held, "understanding/kl")
    assert len(divergences) == 6
    assert divergences[0] == pytest.approx(0, abs=1e-9)  # the first update's policy is the reference
    assert max(divergences) > 1e-3
    for key in ("exact_match", "p_answer", "p_token", "seconds"):
        assert len(logged(held, f"eval_understanding/{key}")) == 3, key
    assert "text kl" in capsys.readouterr().out
    with Image.open(held.plot) as with_questions:
        assert with_questions.width > 1500
    card = (held.final / "README.md").read_text()
    assert "## Understanding" in card
    assert "| P(answer) per token | " in card

    # The command alone, on the exported checkpoint, finds what the run did.
    scores = tmp_path / "scores"
    assert main(["evaluate", str(held.config), "--model", str(held.final), "--output", str(scores)]) == 0
    assert json.loads((scores / "understanding.json").read_text()) == dict(held.evaluated("understanding"))[6]
    metrics = json.loads((scores / "scores.json").read_text())["metrics"]
    assert metrics["eval_understanding/p_token"] == pytest.approx(logged(held, "eval_understanding/p_token")[-1])
    assert f"understanding/p_token: {metrics['eval_understanding/p_token']:.4f}" in capsys.readouterr().out


def test_with_an_adapter_the_reference_is_the_model_without_it(settings):
    folder = run(
        settings,
        model={"lora": {"r": 4}},
        understanding={"kl_beta": 1.0, "questions": None},
        algorithm={"beta": 0.01},
        trainer={"max_steps": 3, "gradient_checkpointing": True},
    )
    divergences = logged(folder, "understanding/kl")
    assert divergences[0] == pytest.approx(0, abs=1e-9)
    assert divergences[-1] > 0
    assert logged(folder, "kl")[-1] > 0
    assert not list(folder.evaluations.iterdir())


@pytest.mark.parametrize(
    ("engine", "lora"),
    [
        ("ddp", False),
        ("zero3", False),
        pytest.param("zero2", False, marks=pytest.mark.slow),
        pytest.param("zero3", True, marks=pytest.mark.slow),
    ],
)
def test_two_processes_ask_and_hold_what_one_does(settings, tmp_path, engine, lora):
    """Of the three questions of an update, the second process has none in the second micro-batch."""
    settings["understanding"] |= {"kl_beta": 1.0, "every": None}
    # The first gradient of the term is rounding noise, which Adam's usual 1e-8 would blow up into an update.
    settings["trainer"] |= {"max_steps": 2, "adam_epsilon": 1e-6}
    if lora:
        settings["model"]["lora"] = {"r": 4}
        settings["trainer"]["gradient_checkpointing"] = True
    whole = run(settings, output_dir=str(tmp_path / "one"))
    shared = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    shared |= {} if engine == "ddp" else {"deepspeed": deepspeed(engine)}
    halves, said = launch(settings, 2, trainer=shared, output_dir=str(tmp_path / "two"))
    assert "held-out questions: exact match" in said
    for key in ("understanding/kl", "grad_norm"):
        assert logged(halves, key) == pytest.approx(logged(whole, key), rel=1e-3, abs=1e-7), key
    assert logged(whole, "understanding/kl")[-1] > 1e-4
    one, two = (dict(folder.evaluated("understanding")) for folder in (whole, halves))
    assert one[0] == two[0]
    assert one[2]["p_token"] == pytest.approx(two[2]["p_token"], rel=1e-3)


def test_the_recipe_alone_decides_about_a_reference(settings):
    assert not recipe_from_mapping(settings).needs_reference
    settings["understanding"]["kl_beta"] = 0.5
    assert recipe_from_mapping(settings).needs_reference
    with pytest.raises(UserError, match="kl_betta"):
        recipe_from_mapping({**settings, "understanding": {"kl_betta": 1}})
