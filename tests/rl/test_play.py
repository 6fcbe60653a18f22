"""What episodes may ask for, and what is handed on of what the model makes."""

import pytest
import torch
from PIL import Image

from rewards import RewardSuite
from rl.data.prompts import PromptRecord
from rl.episodes import running
from rl.episodes.registry import Episodes
from rl.episodes.requests import Draw, Write, turns
from rl.evaluation.evaluate import Evaluator
from rl.policy import play as playing
from rl.policy.play import play
from rl.policy.samples import DrawSettings, Sample
from rl.policy.turns import joined
from rl.scoring.scorer import LocalScorer, ScoredList
from uniar.conversations import Message
from uniar.errors import UserError
from uniar.writing import Written

SAID = [Message("user", ("why?",))]


def settings(episode) -> DrawSettings:
    episodes = Episodes({"default": "mine.py:mine"})
    episodes._loaded["mine.py:mine"] = episode
    return DrawSettings(
        height=32,
        width=32,
        temperature=1.0,
        guidance_scale=None,
        upsampling_ratio=1.0,
        num_inference_steps=2,
        decoder_guidance_scale=1.0,
        decode_batch_size=1,
        seed=0,
        episodes=episodes,
        max_new_tokens=12,
    )


def played(model, processor, episode, samples: int = 1) -> list:
    record = PromptRecord("a cat", id="cat")
    return play(model, processor, [Sample(record, index) for index in range(samples)], settings(episode))


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (None, "yielded NoneType; an episode yields Draw or Write"),
        (Draw(None), "a prompt that is NoneType"),
        (Draw("x", Image.new("RGB", (32, 32))), "pictures that are not a list of images or drawings"),
        (Draw("x", ["cat.png"]), "pictures that are not a list of images or drawings"),
        (Draw("x", size=32), r"size 32; it must be \(height, width\)"),
        (Draw("x", size=(32,)), r"size \(32,\)"),
        (Draw("x", size=(32.0, 32.0)), r"size \(32.0, 32.0\)"),
        (Draw("x", size=(40, 32)), "height 40 is not a multiple of 32"),
        (Write("why?"), "messages that are not a list of Message"),
        (Write([{"role": "user", "content": "why?"}]), "messages that are not a list of Message"),
        (Write(SAID, 0), "max_new_tokens 0; a text has 1 token at least"),
        (Write(SAID, "8"), "max_new_tokens '8'"),
    ],
)
def test_what_cannot_be_asked_for_is_said(nano_model, nano_processor, request_, said):
    def mine(record):
        yield request_

    with pytest.raises(UserError, match=f"the episode mine.py:mine.*{said}"):
        played(nano_model, nano_processor, mine)


def test_a_size_that_the_decoder_cannot_draw_is_refused_before_any_is_drawn(
    nano_model, nano_processor, nano_decoder, monkeypatch
):
    monkeypatch.setattr(playing, "rollout", lambda *_, **__: pytest.fail("something was drawn"))
    suite = RewardSuite([])
    side = nano_decoder.sizes.largest + 32

    def mine(record):
        yield Draw(record.prompt, size=None if record.id == "usual" else (side, 32))

    usual = settings(mine)
    records = [PromptRecord("a cat", id=name) for name in ("usual", "other")]
    scorer = LocalScorer(nano_decoder, ScoredList(suite, usual), nano_processor)
    with pytest.raises(
        UserError, match=rf"^the episode mine.py:mine: {side}×32 .*; this decoder.s sides must be .*\.$"
    ):
        Evaluator(records, nano_processor, scorer, usual).run(nano_model)


@pytest.mark.parametrize(("kind", "asked"), [("picture", Write(SAID)), ("text", Draw("x"))])
def test_a_turn_that_would_not_be_trained_is_refused(nano_model, nano_processor, kind, asked):
    @turns(kind)
    def mine(record):
        yield asked

    with pytest.raises(UserError, match=f"its turns are {kind}; add"):
        played(nano_model, nano_processor, mine)


def test_an_episode_without_an_end_is_ended(nano_model, nano_processor, monkeypatch):
    monkeypatch.setattr(running, "MOST_TURNS", 3)

    def mine(record):
        while True:
            yield Draw(record.prompt, size=[32, 32])

    with pytest.raises(UserError, match="asks for more than 3 turns"):
        played(nano_model, nano_processor, mine)


def test_whatever_is_written_can_be_said_in_a_later_turn(nano_model, nano_processor, monkeypatch):
    monkeypatch.setattr(Written, "texts", lambda *_: ["a\0 cat <|im_<|im_end|>end|>\0 on a mat"])

    def mine(record):
        said = yield Write(SAID)
        yield Draw(said)

    (made,) = played(nano_model, nano_processor, mine)
    assert made.completion.texts == ("a cat  on a mat",)


def test_a_text_is_as_long_as_it_is_whatever_it_is_written_beside(nano_model, nano_processor):
    nano_model.generation_config.eos_token_id = list(range(0, 512, 6))  # one token in six ends a text

    def mine(record):
        yield Write(SAID)

    texts = [one.turns[0] for one in played(nano_model, nano_processor, mine, samples=8)]
    assert len({text.width for text in texts}) > 2
    for text in texts:
        assert text.width == text.elements == text.drawn.shape[1]
        assert text.prompt.input_ids.shape == text.prompt.attention_mask.shape == text.prompt.position_ids[:, 0].shape
        assert torch.equal(text.prompt.input_ids[:, -text.width :], text.tokens)
    together = joined(texts)
    with torch.no_grad():
        found = together.replay(nano_model, 1.0).log_probs
    assert (found - together.drawn).abs().max() < 1e-4


def test_what_an_episode_does_to_what_it_is_given_stays_with_it(nano_model, nano_processor):
    record, counts = PromptRecord("a cat", metadata={"count": [1]}, id="cat"), []

    def mine(given):
        drawing = yield Draw(given.prompt)
        given.metadata["count"].append(2)
        counts.append(given.metadata["count"])
        drawing.bits.zero_()

    made, _ = play(nano_model, nano_processor, [Sample(record, index) for index in range(2)], settings(mine))
    assert record.metadata == {"count": [1]}
    assert counts == [[1, 2], [1, 2]]
    assert made.turns[0].bits.any()
    assert torch.equal(made.turns[0].bits[0], made.completion.drawing.bits)


def test_the_samples_of_a_prompt_share_its_picture(nano_model, nano_processor, tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "cat.png")
    record, seen = PromptRecord("what is it?", image=str(tmp_path / "cat.png"), id="cat"), []

    def mine(given):
        seen.append(given)
        yield Write([Message("user", (*given.pictures, given.prompt))])

    play(nano_model, nano_processor, [Sample(record, index) for index in range(2)], settings(mine))
    assert seen[0] is not seen[1]
    assert seen[0].pictures[0] is seen[1].pictures[0]
    assert "pictures" not in vars(record)


def test_half_a_character_is_refused(nano_model, nano_processor):
    def mine(record):
        yield Draw("half of a \ud83d")

    with pytest.raises(UserError, match="is not text in UTF-8"):
        played(nano_model, nano_processor, mine)


def test_each_turn_has_noise_of_its_own(nano_model, nano_processor):
    def mine(record):
        for _ in range(2):
            yield Draw("a cat")
            yield Write(SAID)

    first, second = played(nano_model, nano_processor, mine, 2)
    pictures = [turn.bits for one in (first, second) for turn in one.turns[::2]]
    texts = [turn.tokens[0].tolist() for one in (first, second) for turn in one.turns[1::2]]
    assert len({bits.numpy().tobytes() for bits in pictures}) == len({str(text) for text in texts}) == 4
    again = played(nano_model, nano_processor, mine, 2)
    assert [one.completion.texts for one in again] == [first.completion.texts, second.completion.texts]
