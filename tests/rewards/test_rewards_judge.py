"""The reward `vlm_judge` against OpenAI-compatible servers that are good, slow, broken or gone."""

import base64
import io
import math
import time

import pytest
import torch
from PIL import Image
from support.hostile_server import free_port, hostile_server, silent_server
from support.numbered_batch import DEADLINE, ENOUGH, make_batch, score

from rewards import RewardBatch, RewardError, RewardSuite
from uniar.errors import UserError

MODELS = {"object": "list", "data": [{"id": "judge-7b", "object": "model"}]}


def text_of(request):
    return request.content["messages"][-1]["content"][1]["text"]


def red_of(request):
    url = request.content["messages"][-1]["content"][0]["image_url"]["url"]
    data = base64.b64decode(url.removeprefix("data:image/png;base64,"), validate=True)
    return Image.open(io.BytesIO(data)).getpixel((0, 0))[0]


def completion(text, reason="stop", tokens=None):
    message = {"role": "assistant", "content": text}
    return {"choices": [{"message": message, "finish_reason": reason, "logprobs": tokens and {"content": tokens}}]}


def thought_aside(reasoning, text, field="reasoning_content"):
    answer = completion(text)
    answer["choices"][0]["message"][field] = reasoning
    return answer


def good(request):
    request.send(completion(f"It is what it is.\nScore: {red_of(request)}"))


def suite_of(*servers, on_error="stop", **parameters):
    url = [server if isinstance(server, str) else f"{server.url}/v1" for server in servers]
    settings = {"deadline": DEADLINE, "timeout": 1.0, "attempts": 3, "scale": [0, 9], "rescale": "none", **parameters}
    entry = {"use": "vlm_judge", "url": url[0] if len(url) == 1 else url, "name": "judge", **settings}
    return RewardSuite.from_recipe([{**entry, "on_error": on_error}])


# A good server -------------------------------------------------------------------------------------------------------


def test_every_sample_gets_the_rating_of_its_own_picture_and_prompt():
    def later_first(request):
        time.sleep(0.2 / request.number)
        good(request)

    with hostile_server(later_first, MODELS) as server:
        table, _ = score(suite_of(server, concurrency=4, deadline=ENOUGH), make_batch(10))
    assert table.values.flatten().tolist() == list(range(10))
    assert table.details["judge"][3] == {"why": "It is what it is.\nScore: 3"}
    prompts = [post["messages"][-1]["content"][1]["text"] for post in server.posts]
    assert sorted(text.split("\n\n")[1] for text in prompts) == sorted(make_batch(10).prompts)
    assert server.paths == ["/v1/chat/completions"] * 10
    assert server.most_at_a_time <= 4


def test_the_request_is_what_the_recipe_says():
    with hostile_server(good, MODELS) as server:
        settings = {"system": "You are strict.", "max_tokens": 7, "temperature": 0.5, "extra": {"top_k": 1, "seed": 3}}
        score(suite_of(server, **settings), make_batch(1))
    [post] = server.posts
    assert (post["model"], post["max_tokens"], post["temperature"]) == ("judge-7b", 7, 0.5)
    assert (post["top_k"], post["seed"]) == (1, 3)
    assert (post["logprobs"], post["top_logprobs"]) == (True, 20)
    assert post["messages"][0] == {"role": "system", "content": "You are strict."}
    assert post["messages"][1]["role"] == "user"


def test_log_probabilities_are_asked_for_only_where_they_can_be_used():
    for settings in ({"expectation": False}, {"scale": [0, 10]}):
        with hostile_server(good, MODELS) as server:
            score(suite_of(server, **settings), make_batch(1))
        assert "logprobs" not in server.posts[0]
        assert "messages" in server.posts[0]


def test_the_expectation_arrives_as_the_score():
    def unsure(request):
        alternatives = [{"token": "2", "logprob": math.log(0.5)}, {"token": "6", "logprob": math.log(0.25)}]
        tokens = [{"token": "Score: "}, {"token": "2", "logprob": math.log(0.5), "top_logprobs": alternatives}]
        request.send(completion("Score: 2", tokens=tokens))

    with hostile_server(unsure, MODELS) as server:
        table, _ = score(suite_of(server), make_batch(2))
    assert table.values.flatten().tolist() == pytest.approx([(2 * 0.5 + 6 * 0.25) / 0.75] * 2)


def test_the_preset_asks_for_its_three_lines_and_weighs_them():
    def three(request):
        request.send(completion("Alignment Score (1-5): 4\nCoherence Score (1-5): 2\nStyle Score (1-5): 5"))

    with hostile_server(three, MODELS) as server:
        suite = RewardSuite.from_recipe([{"use": "vlm_judge", "url": f"{server.url}/v1", "preset": "unified_reward"}])
        table, _ = score(suite, make_batch(1))
    assert table.values.item() == pytest.approx((0.4 * 4 + 0.4 * 2 + 0.2 * 5) / 5)
    asked = server.posts[0]["messages"][0]["content"][1]["text"]
    assert all(f"{axis} Score (1-5): " in asked for axis in ("Alignment", "Coherence", "Style"))
    assert asked.endswith("Text Caption: [prompt 0]")


def test_a_judge_of_edits_sees_the_picture_before_and_then_the_one_after():
    def three(request):
        request.send(completion("Instruction Score (1-5): 5\nPreservation Score (1-5): 3\nQuality Score (1-5): 1"))

    batch = make_batch(2, source_images=[[Image.new("RGB", (4, 4), "white")], []])
    with hostile_server(three, MODELS) as server:
        suite = RewardSuite.from_recipe([{"use": "vlm_judge", "url": f"{server.url}/v1", "preset": "edit"}])
        table, _ = score(suite, batch)
    assert table.values[0].item() == pytest.approx(0.4 * 1 + 0.4 * 0.5)
    assert table.values[1].isnan()  # it edits nothing
    assert not table.failed.any()
    [before, after, asked] = server.posts[0]["messages"][0]["content"]
    pixels = [
        Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].split(",")[1]))) for part in (before, after)
    ]
    assert [picture.getpixel((0, 0)) for picture in pixels] == [(255, 255, 255), batch.images[0].getpixel((0, 0))]
    assert "prompt 0" in asked["text"]


def test_a_judge_of_what_was_written_needs_no_image():
    batch = RewardBatch(["q", "q"], [None, None], texts=[["first", "last"], []])

    def four(request):
        request.send(completion("Score: 4"))

    with hostile_server(four, MODELS) as server:
        table, _ = score(suite_of(server, prompt="Is {text} polite?"), batch)
    assert table.values.isnan().flatten().tolist() == [False, True]
    assert [post["messages"][0]["content"] for post in server.posts] == [[{"type": "text", "text": "Is last polite?"}]]


def test_a_template_takes_the_samples_own_values_and_leaves_other_braces():
    template = 'Is {metadata.count} right for {prompt} ({task})? Answer {"Score": N}, not {Score}.'
    metadata = [{"count": 3}, {}, {"count": 0}, {"count": None}]
    batch = make_batch(4, metadata=metadata, tasks=["a", "a", "b", "c"])
    with hostile_server(good, MODELS) as server:
        table, _ = score(suite_of(server, prompt=template), batch)
    assert [math.isnan(value) for value in table.values.flatten()] == [False, True, False, True]
    assert table.failures == {"judge": 0}  # it does not apply to them
    asked = sorted(post["messages"][-1]["content"][1]["text"] for post in server.posts)
    assert asked == [
        'Is 0 right for prompt 2 (b)? Answer {"Score": N}, not {Score}.',
        'Is 3 right for prompt 0 (a)? Answer {"Score": N}, not {Score}.',
    ]


def test_the_key_is_read_from_the_environment_and_sent(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-0123456789")
    with hostile_server(good, MODELS) as server:
        score(suite_of(server, token_env="JUDGE_KEY"), make_batch(1))
    assert server.headers[0]["Authorization"] == "Bearer sk-0123456789"


# Several servers -----------------------------------------------------------------------------------------------------


def test_load_is_spread_and_a_server_that_fails_is_left_alone():
    def slow(request):
        time.sleep(0.03)
        good(request)

    def broken(request):
        bad.listing = 503  # which is its health too
        request.send({"error": {"message": "CUDA out of memory", "code": 500}}, 500)

    with (
        hostile_server(broken, MODELS) as bad,
        hostile_server(slow, MODELS) as one,
        hostile_server(slow, MODELS) as two,
    ):
        table, _ = score(suite_of(bad, one, two, concurrency=1, deadline=ENOUGH), make_batch(10))
    assert table.values.flatten().tolist() == list(range(10))
    assert len(bad.posts) <= 2
    assert min(len(one.posts), len(two.posts)) >= 2
    assert "/v1/models" in bad.gets


def test_a_server_that_lists_no_models_is_asked_without_health_checks():
    def once_broken(request):
        request.send(b"", 502) if request.number == 1 else good(request)

    with hostile_server(once_broken, 404) as server:
        table, _ = score(suite_of(server, model="m", deadline=ENOUGH), make_batch(1))
    assert table.values.item() == 0
    assert server.gets == ["/v1/models"]


# Bad answers ---------------------------------------------------------------------------------------------------------

BAD = {
    # What the judge does with the picture of sample 2, and what is said of it. The others are rated.
    "slow": (lambda r: time.sleep(2.5), "the deadline has passed"),
    "drips": (lambda r: r.drip(2.5), "did not answer within 0.5 s"),
    "drops": (lambda r: r.drop(), "broke the connection off"),
    "dies midway": (lambda r: r.send(b'{"choices": [{"mess', length=500), "broke the connection off"),
    "500": (lambda r: r.send({"error": {"message": "engine died"}}, 500), "answered 500: engine died"),
    "502": (lambda r: r.send(b"<html>bad gateway</html>", 502), "answered 502: <html>bad gateway</html>"),
    "400": (lambda r: r.send({"error": {"message": "image too large"}}, 400), "answered 400: image too large"),
    "403": (lambda r: r.send({"error": {"message": "not you"}}, 403), "answered 403: not you"),
    "redirect": (lambda r: r.send(b"", 307, [("Location", "http://127.0.0.1:9/")]), "answered 307"),
    "flood": (lambda r: r.flood(40 * 2**20), "answered with more than"),
    "no JSON": (lambda r: r.send(b"Score: 4"), "answered with no chat completion: 'Score: 4'"),
    "deep JSON": (lambda r: r.send(b"[" * 100_000), "answered with no chat completion"),
    "bad UTF-8": (lambda r: r.send(b'{"choices": "\xff\xfe'), "answered with no chat completion"),
    "other JSON": (lambda r: r.send([4]), "answered with no chat completion"),
    "an error": (lambda r: r.send({"error": {"message": "no"}}), "answered with no chat completion"),
    "no choice": (lambda r: r.send({"choices": []}), "answered with no chat completion"),
    "two choices": (lambda r: r.send({"choices": completion("4")["choices"] * 2}), "answered with no chat completion"),
    "half a choice": (lambda r: r.send({"choices": [{"message": {}}]}), "answered with no chat completion"),
    "no text": (lambda r: r.send(completion(None)), "the judge's answer is empty"),
    "blank": (lambda r: r.send(completion(" \n")), "the judge's answer is empty"),
    "a number": (lambda r: r.send(completion(4)), "the judge's answer is empty"),
    "cut": (lambda r: r.send(completion("Score: 4", "length")), "cut at max_tokens: 'Score: 4'"),
    "filtered": (lambda r: r.send(completion("Score: 4", "content_filter")), "ended by 'content_filter': 'Score: 4'"),
    "only thoughts": (lambda r: r.send(thought_aside("Score: 4", None)), "the judge's answer is empty"),
    "open thoughts": (lambda r: r.send(completion("<think>Score: 4")), "thinking has no end: '<think>Score: 4'"),
    "refusal": (lambda r: r.send(completion("I can't help with that.")), 'has no Score: "I can\'t help with that."'),
    "NaN": (lambda r: r.send(completion("Score: NaN")), "has no Score"),
    "infinity": (lambda r: r.send(completion("Score: 1e999")), "Score is not one number: 'Score: 1e999'"),
    "huge": (lambda r: r.send(completion("Score: " + "9" * 400)), "the scale is 0 to 9"),
    "off the scale": (lambda r: r.send(completion("Score: 10")), "the judge's Score is 10, the scale is 0 to 9"),
    "another scale": (lambda r: r.send(completion("Score: 7/10")), "the judge's Score is out of 10"),
    "endless": (lambda r: r.send(completion("4" * 200_000)), "100000 at most are read"),
}


def on_the_third(bad):
    def answer(request):
        bad(request) if red_of(request) == 2 else good(request)

    return answer


@pytest.mark.parametrize("case", BAD)
def test_a_bad_answer_fails_its_sample_alone(case, caplog):
    bad, message = BAD[case]
    with hostile_server(on_the_third(bad), MODELS) as server:
        timeout, deadline = (0.5, DEADLINE) if case in ("slow", "drips") else (ENOUGH, ENOUGH)
        table, seconds = score(suite_of(server, on_error="skip", timeout=timeout, deadline=deadline), make_batch())
    expected = torch.tensor([0, 1, math.nan, 3, 4, 5], dtype=torch.float64)
    torch.testing.assert_close(table.values.flatten(), expected, equal_nan=True, rtol=0, atol=0)
    assert table.failures == {"judge": 1}
    assert message in caplog.text
    assert seconds < deadline + 3


@pytest.mark.parametrize("case", ["slow", "drops", "500", "no JSON", "NaN"])
def test_under_stop_a_bad_answer_ends_the_run_with_its_reason(case):
    bad, message = BAD[case]
    with hostile_server(on_the_third(bad), MODELS) as server, pytest.raises(RewardError, match=message) as caught:
        score(suite_of(server), make_batch())
    assert (caught.value.index, caught.value.prompt) == (2, "prompt 2")
    assert str(caught.value).startswith("reward 'judge' failed: ")


@pytest.mark.parametrize(
    ("case", "attempts"),
    [("500", 3), ("drops", 3), ("dies midway", 3), ("400", 3), ("403", 1), ("no JSON", 1), ("refusal", 1)],
)
def test_only_what_another_attempt_may_mend_is_tried_again(case, attempts):
    bad, _ = BAD[case]
    with hostile_server(bad, MODELS) as server:
        table, _ = score(suite_of(server, on_error="skip", deadline=ENOUGH, retries=3), make_batch(1))
    assert table.values.isnan().all()
    assert len(server.posts) == attempts


def test_a_judge_that_dies_midway():
    def last_words(request):
        if request.number > 3:
            own_stop()
            request.drop()
        else:
            good(request)

    with hostile_server(last_words, MODELS) as server:
        own_stop, server.stop = server.stop, lambda: None
        table, seconds = score(suite_of(server, on_error="skip", concurrency=1), make_batch())
    assert table.values.flatten()[:3].tolist() == [0, 1, 2]
    assert table.values.flatten()[3:].isnan().all()
    assert table.failures == {"judge": 3}
    assert seconds < DEADLINE + 3


def test_silence_ends_at_the_deadline():
    """Connections are accepted, and nobody ever reads from them."""
    with silent_server() as url:
        suite = suite_of(f"{url}/v1", model="m", on_error="skip", timeout=60)
        suite.rewards[0]._loaded = True  # its models cannot be asked for here
        table, seconds = score(suite, make_batch(20))
    assert table.failures == {"judge": 20}
    assert DEADLINE - 0.1 < seconds < DEADLINE + 3


# Parameters and loading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "is not a server; http://host:port"),
        ({"preset": "unified"}, "'unified_reward'"),
        ({"prompt": "Rate {promt}."}, r"prompt has \{promt\}, which stands for nothing. Did you mean 'prompt'"),
        ({"prompt": " "}, "prompt is empty"),
        ({"scale": [5, 1]}, r"scale is \[5.0, 1.0\]; \[lowest, highest\] is needed"),
        ({"scale": [1]}, "scale is"),
        ({"scale": [0, math.inf]}, r"scale.1 is inf \(not finite\), expected a number"),
        ({"scale": [-5, 0], "rescale": "max"}, "rescale is max, but the highest rating is 0"),
        ({"ratings": {}}, "ratings is empty"),
        ({"ratings": {"a": "1"}}, "ratings has 'a': '1'"),
        ({"ratings": {"a": True}}, "ratings has 'a': True"),
        ({"pattern": "("}, "is not a regular expression"),
        ({"pattern": "Score"}, "has no group"),
        ({"pattern": "(a)", "parser": "json"}, "pattern is for parser text and a single rating"),
        ({"pattern": "(a)", "ratings": {"a": 1, "b": 1}}, "pattern is for parser text and a single rating"),
        ({"expectation": True, "scale": [1, 10]}, "single digits, 0 to 9; found 1 to 10"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": -0.5}, "temperature -0.5"),
        ({"deadline": 0}, "deadline is 0 seconds"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"normalise": "max"}, "unknown parameter 'normalise'"),
    ],
)
def test_parameters_that_cannot_work_are_refused(parameters, message):
    with pytest.raises(UserError, match=message):
        RewardSuite.from_recipe([{"use": "vlm_judge", "url": "http://127.0.0.1:9/v1", **parameters}])


@pytest.mark.parametrize(
    ("listing", "model", "message"),
    [
        (MODELS, "judge-70b", "has no model 'judge-70b'; it has judge-7b. Did you mean 'judge-7b'"),
        ({"data": [{"id": "a"}, {"id": "b"}]}, None, "has no model None; it has a, b"),
        (404, None, "lists no model; name it by 'model'"),
        ({"models": []}, None, "lists no model; name it by 'model'"),
        (401, "judge-7b", r"answered 401.*the key is read from nowhere: set token_env"),
    ],
)
def test_what_cannot_work_is_found_before_the_first_rollout(listing, model, message):
    with hostile_server(good, listing) as server, pytest.raises(UserError, match=message):
        suite_of(server, model=model, on_error="skip").load()


def test_a_judge_that_is_not_there_is_found_before_the_first_rollout():
    with pytest.raises(UserError, match=r"no judge can be used: .* cannot be reached"):
        suite_of(f"http://127.0.0.1:{free_port()}/v1", on_error="skip").load()
    with hostile_server(good, MODELS) as server:
        table, _ = score(suite_of(f"http://127.0.0.1:{free_port()}/v1", server, deadline=ENOUGH), make_batch(3))
    assert table.values.flatten().tolist() == [0, 1, 2]
