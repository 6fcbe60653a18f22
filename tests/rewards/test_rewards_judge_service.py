"""`vlm_judge` against a hosted service as they are: it limits requests, is overloaded, refuses parameters and thinks.
Every picture gets its right score or none."""

import math
import threading
import time

import pytest
import torch
from support.hostile_server import hostile_server
from support.numbered_batch import ENOUGH, make_batch, score
from test_rewards_judge import MODELS, completion, red_of, suite_of

DOUBTFUL = 7
"""a picture whose red is this, modulo 10, is rated "7 or 8\""""


class Service:
    """A judge behind a gateway.

    limit: requests that it takes in `window` seconds; others get 429 without a hint. logprobs: how many alternatives it
    gives; None: it refuses to be asked. refusal: what it then says. thinks: "aloud", "aside", or not at all.
    """

    def __init__(self, limit=10**6, window=1.0, logprobs=20, refusal=(400, "logprobs is not supported"), thinks=None):
        self.limit, self.window, self.logprobs, self.refusal, self.thinks = limit, window, logprobs, refusal, thinks
        self.taken, self.refused, self.overloaded, self.lock = [], 0, False, threading.Lock()

    def __call__(self, request):
        request.send(*self._answer(request))

    def _answer(self, request):
        with self.lock:
            now = time.monotonic()
            if sum(now - other < self.window for other in self.taken) >= self.limit:
                self.refused += 1
                return {"error": {"message": "Rate limit reached"}}, 429
            self.taken.append(now)
            if not self.overloaded:
                self.overloaded = True
                return {"error": {"type": "overloaded_error"}}, 529
        asked = request.content.get("top_logprobs")
        if asked is not None and (self.logprobs is None or asked > self.logprobs):
            status, message = self.refusal
            return {"error": {"message": message}}, status
        rating = red_of(request) % 10
        answer = f"Score: {rating}" if rating != DOUBTFUL else "Score: 7 or 8"
        draft = f"The form is Score: N.\nScore: {(rating + 3) % 10}\n"
        text = f"<think>{draft}</think>\n{answer}" if self.thinks == "aloud" else answer
        spelt = f"<think>{draft}</think>\n{answer}" if self.thinks else answer
        content = completion(text, tokens=asked and _tokens(spelt, len(spelt) - 1))
        if self.thinks == "aside":
            content["choices"][0]["message"]["reasoning_content"] = draft
        return content, 200


def _tokens(text, verdict):
    """A token a character; digits but the verdict could as well be 0."""
    tokens = []
    for place, character in enumerate(text):
        chances = {character: 0.1, "0": 0.9} if character.isdigit() and place != verdict else {character: 1.0}
        top = [{"token": other, "logprob": math.log(p)} for other, p in chances.items()]
        tokens.append({"token": character, "logprob": math.log(chances[character]), "top_logprobs": top})
    return tokens


def require_right(service, count, **settings):
    """The posts that it took."""
    with hostile_server(service, MODELS) as server:
        settings = {"deadline": ENOUGH, "timeout": ENOUGH, "concurrency": 16, **settings}
        table, seconds = score(suite_of(server, on_error="skip", **settings), make_batch(count))
    expected = [math.nan if n % 10 == DOUBTFUL else float(n % 10) for n in range(count)]
    torch.testing.assert_close(
        table.values.flatten(), torch.tensor(expected, dtype=torch.float64), equal_nan=True, rtol=1e-9, atol=1e-9
    )
    assert table.failures == {"judge": sum(map(math.isnan, expected))}
    print(f"{count} pictures in {seconds:.1f} s, {len(server.posts)} requests, {service.refused} of them refused")
    return server.posts


REFUSALS = {
    "at all": (None, (400, "logprobs is not supported with this model"), [None]),
    "at all, 422": (None, (422, "Extra inputs are not permitted"), [None]),
    "at all, 404": (None, (404, "No endpoints found that support the requested parameters"), [None]),
    "at all, 501": (None, (501, "not supported"), [None]),
    "more than 5": (5, (400, "top_logprobs must be at most 5"), [5]),
    "more than 8": (8, (400, "Invalid value"), [5]),
}


@pytest.mark.parametrize("thinks", [None, "aloud", "aside"])
def test_a_judge_that_thinks(thinks):
    posts = require_right(Service(thinks=thinks), 12)
    assert {post.get("top_logprobs") for post in posts} == {20}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_judge_that_refuses_log_probabilities(case):
    logprobs, refusal, asked = REFUSALS[case]
    settings = {"concurrency": 1, "attempts": 1 if case == "at all, 501" else 3}
    posts = require_right(Service(logprobs=logprobs, refusal=refusal, thinks="aloud"), 8, **settings)
    assert len(posts) <= 8 + 3  # found once, and remembered
    assert [post.get("top_logprobs") for post in posts[-7:]] == asked * 7
    assert all(("logprobs" in post) == ("top_logprobs" in post) for post in posts)


def test_log_probabilities_that_are_insisted_on_are_not_done_without():
    service = Service(logprobs=None)
    with hostile_server(service, MODELS) as server:
        table, _ = score(suite_of(server, on_error="skip", expectation=True, deadline=ENOUGH), make_batch(3))
    assert table.values.isnan().all()
    assert all("top_logprobs" in post for post in server.posts)
    posts = require_right(Service(logprobs=5), 6, expectation=True)
    assert posts[-1]["top_logprobs"] == 5


def test_a_refused_picture_changes_nothing_for_the_others():
    def picky(request):
        if red_of(request) in (0, 3):
            request.send({"error": {"message": "image too large"}}, 400)
        else:
            asked.append(request.content["top_logprobs"])
            service(request)

    service, asked = Service(), []
    with hostile_server(picky, MODELS) as server:
        table, _ = score(suite_of(server, on_error="skip", deadline=ENOUGH, concurrency=1), make_batch(6))
    assert [math.isnan(value) for value in table.values.flatten()] == [n in (0, 3) for n in range(6)]
    assert set(asked) == {20}


@pytest.mark.parametrize("thinks", ["aloud", "aside"])
def test_a_service_with_all_of_it_at_once(thinks):
    service = Service(limit=6, window=0.6, logprobs=None, thinks=thinks)
    require_right(service, 16, concurrency=8)
    assert service.refused > 0


@pytest.mark.slow
def test_a_hundred_pictures_at_twelve_requests_per_ten_seconds():
    require_right(Service(limit=12, window=10.0, logprobs=None, thinks="aloud"), 104, deadline=300.0)
