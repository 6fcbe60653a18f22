"""The reward server over real HTTP: the same scores, requests scored together, tokens, a clean end."""

import hmac
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image
from support.served_rewards import Gate, Red, jpeg, picture, png, post, running, sample, suite_of, text

from rewards import Reward, RewardBatch, RewardSpec, RewardSuite
from rewards.commands.serving import read_suite
from rewards.remote.wire import ScoreRequest, encode_request, read_request
from rewards.remote.wire_answers import Column, encode_answer, read_answer
from rewards.remote.wire_images import Limits
from rewards.serving.batching import ScoringThread
from rewards.serving.connections import build_server
from rewards.serving.server import bind, check_access, create_app, run_server
from uniar.errors import UserError

TOKEN = "correct horse battery staple"


class BitsOn(Reward):
    async def score(self, batch):
        return None if batch.bits is None else batch.bits.flatten(1).sum(1)


@pytest.fixture(scope="module")
def url():
    with running(create_app(suite_of(red=Red, bits=BitsOn))) as url:
        yield url


@pytest.fixture(scope="module")
def client():
    with httpx2.Client(timeout=30, trust_env=False) as client:
        yield client


# Scores --------------------------------------------------------------------------------------------------------------


def test_scores_failures_and_details_come_back_in_order(client, url):
    samples = [
        sample(prompt=prompt, image=text(png(picture((value, 0, 0)))))
        for prompt, value in (("a", 10), ("fail", 20), ("none", 30), ("b", 40))
    ]
    answer = post(client, url, {"samples": samples, "rewards": ["red"]})
    assert answer.status_code == 200
    content = answer.json()
    failures = content.pop("failures")
    assert content == {
        "scores": {"red": [10.0, None, None, 40.0]},
        "details": {"red": {"0": {"why": "saw a"}, "3": {"why": "saw b"}}},
    }
    assert list(failures["red"]) == ["1"]
    assert failures["red"]["1"].startswith("raised ValueError: asked to fail (served_rewards.py, line ")


def test_an_encoded_batch_arrives_as_it_was():
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (9, 7, 3), dtype=np.uint8)) for _ in range(3)]
    bits = torch.from_numpy(random.integers(0, 2, (3, 5, 2, 4, 3), dtype=np.uint8))
    metadata, sources = [{"n": [1, {"x": None}]}, {}, {}], [[images[2]], [], images[:2]]
    texts = [["a", "漢字"], [], [""]]
    batch = RewardBatch(["a", "漢字", "c"], images, ["t", None, "u"], metadata, bits, sources, texts)
    asked = read_request(encode_request(batch, ["red"], send_bits=True), ["red", "blue"], Limits())
    assert asked.rewards == ("red",)
    assert (asked.batch.prompts, asked.batch.tasks, asked.batch.metadata) == (
        batch.prompts,
        batch.tasks,
        batch.metadata,
    )
    assert [image.tobytes() for image in asked.batch.images] == [image.tobytes() for image in images]
    assert [[image.tobytes() for image in row] for row in asked.batch.source_images] == [
        [image.tobytes() for image in row] for row in sources
    ]
    assert asked.batch.texts == texts
    assert torch.equal(asked.batch.bits, bits)
    assert read_request(encode_request(batch, ["red"]), ["red"], Limits()).batch.bits is None


def test_a_sample_that_wrote_needs_no_image():
    asked = read_request(encode_request(RewardBatch(["a"], [None], texts=[["4"]]), ["red"]), ["red"], Limits())
    assert asked.batch.images == [None]
    assert asked.batch.texts == [["4"]]
    assert asked.batch_bytes == asked.scoring_bytes == 0


def test_jpeg_and_other_modes_arrive_as_rgb():
    pictures = [jpeg(picture("blue")), jpeg(picture(128, mode="L")), png(picture((9, 8, 7, 0), mode="RGBA"))]
    body = json.dumps({"samples": [sample(image=text(data)) for data in pictures]}).encode()
    images = read_request(body, ["red"], Limits()).batch.images
    assert {image.mode for image in images} == {"RGB"}
    assert [image.getpixel((4, 4)) for image in images] == [(0, 0, 254), (128, 128, 128), (255, 255, 255)]


def test_an_answer_reads_back_and_carries_no_nan():
    column = Column([1.5, math.nan, math.nan], {1: "broke"}, {0: {"why": "it shines", "boxes": [[1, 2]]}})
    content = encode_answer({"red": column})
    assert b"NaN" not in content
    scored, failed, without = read_answer(content, "red", 3)
    assert (scored["score"], scored["why"], scored["boxes"]) == (1.5, "it shines", [[1, 2]])
    assert isinstance(failed, Exception)
    assert str(failed) == "broke"
    assert without is None


def test_bits_reach_a_reward(client, url):
    bits = torch.tensor([[0, 1, 1], [1, 1, 1]], dtype=torch.uint8).reshape(2, 1, 1, 1, 3)
    body = encode_request(RewardBatch(["a", "b"], [picture()] * 2, bits=bits), ["bits"], send_bits=True)
    answer = client.post(f"{url}/v1/score", content=body, headers={"Content-Type": "application/json"})
    assert answer.json()["scores"] == {"bits": [2.0, 3.0]}


def test_a_reward_sees_the_samples_of_its_tasks():
    suite = suite_of(red=Red)
    suite.specs = (RewardSpec(Red, name="red", tasks=("x",)),)
    thread = ScoringThread(suite, 8)
    batch = RewardBatch(["a", "b", "c"], [picture((n, 0, 0)) for n in (1, 2, 3)], ["y", "x", None])
    scores = thread.submit(ScoreRequest(batch, ("red",))).result()["red"].scores
    thread.close()
    assert [math.isnan(score) for score in scores] == [True, False, True]
    assert scores[1] == 2


# Together ------------------------------------------------------------------------------------------------------------


def test_requests_that_wait_are_scored_together_and_no_more_than_allowed():
    gate = Gate()
    app = create_app(suite_of(gate=gate), limits=Limits(samples=4))
    with running(app) as url, httpx2.Client() as client, ThreadPoolExecutor(16) as pool:

        def ask(*numbers):
            return pool.submit(post, client, url, {"samples": [sample(prompt=str(n)) for n in numbers]})

        first = ask(0)
        assert gate.begun.wait(10)
        others = [ask(n) for n in range(1, 6)] + [ask(10, 11, 12, 13)]
        time.sleep(0.5)  # for the others to arrive: those that do not are scored later, and the test says less
        gate.open.set()
        answers = [future.result().json()["scores"]["gate"] for future in [first, *others]]
    assert answers == [[float(n)] for n in range(6)] + [[10.0, 11.0, 12.0, 13.0]]
    assert gate.batches[0] == ["0"]
    assert sorted(prompt for batch in gate.batches for prompt in batch) == sorted(map(str, [*range(6), *range(10, 14)]))
    assert ["10", "11", "12", "13"] in gate.batches  # a request is never split
    assert max(map(len, gate.batches)) <= 4


def scored_together(pointwise, jobs):
    """The batches that a reward saw of requests which had all been submitted before the first was scored."""
    gate = Gate()
    gate.pointwise = pointwise
    thread = ScoringThread(suite_of(gate=gate), 64)
    blocker = thread.submit(ScoreRequest(RewardBatch(["-1"], [picture()]), ("gate",)))
    assert gate.begun.wait(10)
    futures = [thread.submit(ScoreRequest(batch, ("gate",))) for batch in jobs]
    cancelled = [n for n, future in enumerate(futures) if jobs[n].prompts == ["99"] and future.cancel()]
    gate.open.set()
    results = [None if n in cancelled else future.result(10)["gate"].scores for n, future in enumerate(futures)]
    blocker.result(10)
    thread.close()
    return gate.batches[1:], results


def test_a_reward_that_compares_samples_sees_each_request_by_itself():
    jobs = [RewardBatch(["1", "2"], [picture()] * 2), RewardBatch(["3"], [picture()])]
    assert scored_together(True, jobs) == ([["1", "2", "3"]], [[1, 2], [3]])
    assert scored_together(False, jobs) == ([["1", "2"], ["3"]], [[1, 2], [3]])


def test_samples_with_other_bits_are_another_batch_and_who_left_is_not_scored():
    bits = [torch.zeros(1, n, 1, 1, 1, dtype=torch.uint8) for n in (2, 2, 3)]
    jobs = [RewardBatch([str(n)], [picture()], bits=given) for n, given in enumerate([*bits, None])]
    jobs.insert(1, RewardBatch(["99"], [picture()], bits=bits[0]))
    batches, results = scored_together(True, jobs)
    assert batches == [["0", "1"], ["2"], ["3"]]
    assert results == [[0], None, [1], [2], [3]]


def test_a_server_whose_weights_do_not_fit_on_the_gpu_does_not_start(monkeypatch):
    """Rather than start without the thread that scores, and let every request wait."""

    class Large(Red):
        def to(self, device):
            if torch.device(device).type != "cpu":
                raise RuntimeError("out of memory")

    monkeypatch.setattr("rewards.suite.default_device", lambda: torch.device("meta"))  # stands for a GPU
    suite = RewardSuite([RewardSpec(Large, offload=True)])
    with bind("127.0.0.1", 0) as listener, pytest.raises(SystemExit, match="3"):
        run_server(build_server(create_app(suite), 1, Limits()), listener)


def test_a_client_that_hangs_up_while_it_waits_is_not_scored():
    gate = Gate()
    with running(create_app(suite_of(gate=gate))) as url, httpx2.Client() as client, ThreadPoolExecutor(4) as pool:
        first = pool.submit(post, client, url, {"samples": [sample(prompt="1")]})
        assert gate.begun.wait(10)
        with pytest.raises(httpx2.ReadTimeout):
            post(client, url, {"samples": [sample(prompt="2")]}, timeout=0.5)
        time.sleep(0.3)  # for the server to notice
        gate.open.set()
        assert first.result().status_code == 200
        assert post(client, url, {"samples": [sample(prompt="3")]}).json()["scores"]["gate"] == [3.0]
    assert gate.batches == [["1"], ["3"]]


# Tokens --------------------------------------------------------------------------------------------------------------


def test_without_the_token_nothing_is_scored(client, monkeypatch):
    compared = []

    def noted(left, right, compare=hmac.compare_digest):
        compared.append((left, right))
        return compare(left, right)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    with running(create_app(suite_of(red=Red), token=TOKEN)) as url:
        content = {"samples": [sample()]}
        wrong = ["Bearer wrong", "Bearer", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", ""]
        for value in [*wrong, b"Bearer \xff\xfe\xe9"]:
            answer = post(client, url, content, headers={"Authorization": value})
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert client.get(f"{url}/v1/rewards", headers={"Authorization": value}).status_code == 401
        assert len(compared) == 16  # in constant time, each of them
        assert post(client, url, content).status_code == 401
        assert client.get(f"{url}/health").json() == {"status": "ok"}
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert post(client, url, content, headers=right).status_code == 200
        assert client.get(f"{url}/v1/rewards", headers=right).json()["rewards"] == [
            {"name": "red", "pointwise": True, "needs_image": True}
        ]


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.2", "example.com", "localhost.example.com", "127.0.0.1.nip.io", ""]
)
def test_beyond_this_machine_a_token_is_needed(host):
    with pytest.raises(UserError, match="needs a token"):
        check_access(host, None)
    check_access(host, TOKEN)


def test_on_this_machine_no_token_is_needed_but_a_short_one_is_refused():
    for host in ("127.0.0.1", "127.1.2.3", "localhost", "::1", "[::1]"):
        check_access(host, None)
    for token in ("short", "é" * 20, "line\nbreak in a long token"):
        with pytest.raises(UserError, match="the token has"):
            check_access("127.0.0.1", token)


# The file -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rewards: [", "not valid YAML"),
        ("- color", "a mapping with the key 'rewards'"),
        ("rewards: []", "rewards is empty"),
        ("reward: [color]", "a mapping with the key 'rewards'"),
        ("rewards: [color]\nport: 1", "unknown key 'port'"),
        ("rewards: [colour]", "Did you mean 'color'"),
        ("rewards: [{use: color, colour: red}]", "unknown parameter 'colour'"),
        ("rewards: [{use: color, color: !!python/object:os.system x}]", "the tag .* is not supported"),
    ],
)
def test_a_file_that_cannot_be_served_is_refused(tmp_path, content, message):
    (tmp_path / "rewards.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        read_suite(tmp_path / "rewards.yaml")


def test_the_file_is_read_as_recipes_are(tmp_path):
    (tmp_path / "rewards.yaml").write_text("rewards: [{use: color, color: red, weight: 1e-5, clip: [1e-3, null]}]")
    [spec] = read_suite(tmp_path / "rewards.yaml").specs
    assert (spec.weight, spec.clip) == (1e-5, (1e-3, None))
