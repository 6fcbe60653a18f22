"""`pairwise`: win rates within a group, from a judge on the loopback, against rates counted here."""

import base64
import io
import threading
from itertools import combinations

import pytest
from PIL import Image
from support.hostile_server import hostile_server
from support.numbered_batch import make_batch, score

from rewards import RewardBatch, RewardError, RewardSuite
from uniar.errors import UserError

MODELS = {"object": "list", "data": [{"id": "judge-7b", "object": "model"}]}


def pictures_of(content):
    urls = [part["image_url"]["url"] for part in content["messages"][-1]["content"] if part["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).getpixel((0, 0))[0] for url in urls]


def answering(request, text):
    message = {"role": "assistant", "content": text}
    request.send({"choices": [{"message": message, "finish_reason": "stop"}]})


def verdict(first, second):
    """A judge with a taste, for what is 3 more modulo 7, and a weakness for what it sees first, if both are even."""
    if first % 2 == second % 2 == 0:
        return 1
    return 0 if first == second else 1 + ((second - first) % 7 > 3)


def by_taste(request):
    answering(request, f"They differ.\nBetter: {verdict(*pictures_of(request.content)[-2:])}")


def one_prompt(count, **entries):
    """A group whose sample number n is red by n."""
    batch = make_batch(count, **entries)
    return RewardBatch(["a lemon"] * count, batch.images, batch.tasks, batch.metadata, None, batch.source_images)


def suite_of(server, **parameters):
    settings = {"url": f"{server.url}/v1", "deadline": 30, "attempts": 3, **parameters}
    return RewardSuite.from_recipe([{"use": "pairwise", **settings}])


def counted(pairs):
    """Sample → its wins and comparisons, by the judge's own rule, each pair in both orders."""
    worth, found = {1: 1.0, 2: 0.0, 0: 0.5}, {}
    for one, other in pairs:
        won = (worth[verdict(one, other)] + 1 - worth[verdict(other, one)]) / 2
        for sample, share in ((one, won), (other, 1 - won)):
            found.setdefault(sample, []).append(share)
    return {sample: (sum(shares), len(shares)) for sample, shares in found.items()}


def test_all_with_all_is_the_win_rate():
    with hostile_server(by_taste, MODELS) as server:
        table, _ = score(suite_of(server, pairs=None), one_prompt(6))
    expected = counted(combinations(range(6), 2))
    assert table.values[:, 0].tolist() == pytest.approx([expected[n][0] / 5 for n in range(6)])
    assert table.values.mean().item() == pytest.approx(0.5)  # what one wins the other loses
    asked = [tuple(pictures_of(post)) for post in server.posts]
    assert sorted(asked) == sorted((a, b) for a in range(6) for b in range(6) if a != b)
    assert table.details["pairwise"][2] == {"why": f"won {expected[2][0]:g} of 5 comparisons"}
    assert "a lemon" in server.posts[0]["messages"][0]["content"][2]["text"]
    assert "logprobs" not in server.posts[0]


@pytest.mark.parametrize(("count", "pairs", "each"), [(8, 3, 3), (7, 3, 2), (8, 4, 4), (2, 4, 1)])
def test_the_cost_is_bounded_and_the_choice_the_seeds(count, pairs, each):
    chosen, before = [], 0
    with hostile_server(by_taste, MODELS) as server:
        for seed in (0, 0, 1):
            table, _ = score(suite_of(server, pairs=pairs, seed=seed), one_prompt(count))
            asked, before = [tuple(pictures_of(post)) for post in server.posts[before:]], len(server.posts)
            assert len(asked) == len(set(asked)) == count * each
            assert {(b, a) for a, b in asked} == set(asked)
            expected = counted({tuple(sorted(pair)) for pair in asked})
            assert {comparisons for _, comparisons in expected.values()} == {each}
            rates = [expected[n][0] / each for n in range(count)]
            assert table.values[:, 0].tolist() == pytest.approx(rates)
            chosen.append(set(asked))
    assert chosen[0] == chosen[1]
    assert (chosen[0] == chosen[2]) == (each == count - 1)


def test_groups_are_told_apart_and_one_alone_has_no_score():
    batch = one_prompt(5)
    mixed = RewardBatch(["a", "b", "a", "c", "b"], batch.images)
    with hostile_server(by_taste, MODELS) as server:
        table, _ = score(suite_of(server), mixed)
    assert sorted(tuple(pictures_of(post)) for post in server.posts) == [(0, 2), (1, 4), (2, 0), (4, 1)]
    assert table.values[:, 0].isnan().tolist() == [False, False, False, True, False]
    assert not table.failed.any()


def test_of_an_edit_the_judge_sees_the_original_first():
    original = Image.new("RGB", (4, 4), (200, 0, 0))
    batch = one_prompt(2, source_images=[[original]] * 2)
    for own, word in ((None, "better edit"), ("{prompt}? Better: N", "a lemon?")):
        with hostile_server(by_taste, MODELS) as server:
            score(suite_of(server, prompt=own), batch)
        assert sorted(pictures_of(post) for post in server.posts) == [[200, 0, 1], [200, 1, 0]]
        assert word in server.posts[0]["messages"][0]["content"][3]["text"]


def test_a_comparison_that_fails_costs_its_two_samples_their_score_or_ends_the_run():
    said = ""

    def mumbles(request):
        if sorted(pictures_of(request.content)) == [1, 3]:
            answering(request, said)
        else:
            by_taste(request)

    with hostile_server(mumbles, MODELS) as server:
        entry = {"use": "pairwise", "url": f"{server.url}/v1", "pairs": None, "on_error": "skip"}
        for said in ("I like both.", "Better: 1.5", "Better: 3", "Better: 1 or 2", ""):
            table, _ = score(RewardSuite.from_recipe([entry]), one_prompt(4))
            assert table.failed[:, 0].tolist() == [False, True, False, True], said
            assert table.values[:, 0].isnan().tolist() == [False, True, False, True]
        with pytest.raises(RewardError, match="'pairwise' failed: the judge's answer is empty"):
            score(suite_of(server, pairs=None), one_prompt(4))


def test_a_server_that_is_gone_fails_its_samples():
    down = threading.Event()

    def dies(request):
        down.set()
        request.send({"error": "out of memory"}, 500)

    with hostile_server(dies, MODELS) as server, pytest.raises(RewardError, match="out of memory"):
        score(suite_of(server, attempts=1, deadline=5), one_prompt(3))
    assert down.is_set()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"pairs": 1}, "pairs is 1; 2 or more"),
        ({"prompt": "{text}?"}, "prompt has {text}, which"),
        ({"pair": 3}, "pairs"),
    ],
)
def test_what_cannot_work_is_said(parameters, words):
    with pytest.raises(UserError, match=words.replace("{", r"\{")):
        RewardSuite.from_recipe([{"use": "pairwise", "url": "http://127.0.0.1:1", **parameters}])
