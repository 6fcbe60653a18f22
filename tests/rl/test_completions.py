"""What a sample has made goes through decoding and scoring, whatever it is: pictures of several sizes, texts, both."""

import json
import signal
import threading
from contextlib import nullcontext

import pytest
import torch
from PIL import Image
from support.mixed_completions import SAMPLES, SETTINGS, Painter, contents, mixed, suite
from support.training_runs import SMALL_DRAWING
from support.warm_process import ROOT, run_warm

from rewards import Reward, RewardSpec, RewardSuite
from rl.data.prompts import PromptRecord
from rl.distributed.process_roles import SIGNALS
from rl.policy.completion import Completion, places_by_shape
from rl.policy.samples import Sample
from rl.scoring.completion_messages import completion_message, completions_in, image_tensors, images_in
from rl.scoring.decoder_messages import packed, unpacked
from rl.scoring.decoder_process import DecoderProcess
from rl.scoring.decoding import decode
from rl.scoring.groups import reward_batch
from rl.scoring.scorer import DecoderConnection, LocalScorer, RemoteScorer, ScoredList
from uniar.conversations import Drawing
from uniar.decoder_sizes import DecoderSizes

SIZES = {"square": (2, 2), "wide": (1, 2), "high": (2, 1), "none": None}


def made_of(decoder, kinds) -> list[Completion]:
    generator, shape = torch.Generator().manual_seed(0), decoder.bsq_encoder.config.code_shape
    found = []
    for n, kind in enumerate(kinds):
        rows, columns = SIZES[kind] or (0, 0)
        bits = torch.randint(0, 2, (rows * columns, *shape), dtype=torch.uint8, generator=generator)
        found.append(Completion(Drawing(bits, rows) if rows else None, (f"text {n}",) * (n % 3)))
    return found


def test_sizes_and_texts_in_one_batch_are_scored_as_each_size_alone(nano_decoder):
    """Interleaved; of two sizes that have as many tokens, too. Every reward that sees a picture sees its bits."""
    kinds = [("square", "wide", "none", "high")[n % 4] for n in range(22)]
    made, samples = made_of(nano_decoder, kinds), [Sample(PromptRecord(f"p {n}", id=str(n)), 0) for n in range(22)]

    class Bits(Reward):
        def score(self, batch):
            assert len({image.size for image in batch.images}) == 1
            return [float(bits.sum()) for bits in batch.bits]

    class AtTheEnd(Bits):
        overlaps_decoding = False

    class Texts(Reward):
        needs_image = False

        def score(self, batch):
            return [10 * len(texts) + (image is None) for texts, image in zip(batch.texts, batch.images, strict=True)]

    suite = RewardSuite([RewardSpec(each) for each in (Bits, AtTheEnd, Texts)] + [RewardSpec("compressibility")])
    scorer = LocalScorer(nano_decoder, ScoredList(suite, SMALL_DRAWING), None)
    images, table = scorer.begin(made, samples, policy=nullcontext(), step=3)()
    for places in places_by_shape(made):
        drawings = [made[place].drawing for place in places]
        own = [samples[place] for place in places]
        expected = decode(nano_decoder, drawings, own, SMALL_DRAWING, step=3) if drawings[0] else [None] * len(own)
        assert [image and image.tobytes() for image in expected] == [images[p] and images[p].tobytes() for p in places]
    sizes = {"square": (64, 64), "wide": (64, 32), "high": (32, 64), "none": None}
    assert [image and image.size for image in images] == [sizes[kind] for kind in kinds]
    drawn = torch.tensor([kind != "none" for kind in kinds])
    bits = torch.tensor([float(one.drawing.bits.sum()) if one.drawing else torch.nan for one in made]).double()
    for name in ("Bits", "AtTheEnd"):
        torch.testing.assert_close(table.column(name), bits, equal_nan=True, rtol=0, atol=0)
    assert table.column("Texts").tolist() == [10 * (n % 3) + (kind == "none") for n, kind in enumerate(kinds)]
    assert torch.equal(table.column("compressibility").isnan(), ~drawn)
    assert not table.failed.any()


def test_one_size_is_decoded_in_the_calls_that_it_always_was(nano_decoder, monkeypatch):
    made, samples = made_of(nano_decoder, ["square"] * 19), [Sample(PromptRecord("p", id="p"), n) for n in range(19)]
    calls = []

    def noted(bits, **how):
        calls.append((bits, how))
        return [Image.new("RGB", (64, 64))] * len(bits)

    monkeypatch.setattr(nano_decoder, "decode", noted)
    scorer = LocalScorer(nano_decoder, ScoredList(RewardSuite([]), SMALL_DRAWING), None)
    scorer.begin(made, samples, policy=nullcontext())()
    assert [len(bits) for bits, _ in calls] == [8, 8, 3]
    assert torch.equal(torch.cat([bits for bits, _ in calls]), torch.stack([one.drawing.bits for one in made]))
    assert {(how["ar_height"], how["ar_width"]) for _, how in calls} == {(64, 64)}


def test_drawings_of_two_sizes_are_not_decoded_as_one(nano_decoder):
    wide, high = made_of(nano_decoder, ["wide", "high"])
    with pytest.raises(ValueError, match="2 drawings of several sizes"):
        decode(nano_decoder, [wide.drawing, high.drawing], SAMPLES[:2], SMALL_DRAWING)


def test_a_batch_for_rewards_has_what_there_is(tmp_path):
    Image.new("RGB", (90, 50), "red").save(tmp_path / "a.png")
    edit = PromptRecord("what is it?", image=str(tmp_path / "a.png"), id="edit")
    samples = [Sample(edit, 0), Sample(edit, 1), SAMPLES[0]]
    drawn = Completion(Drawing(torch.ones(4, 1, 4, 8, dtype=torch.uint8), 2), ("so", "drawn"))
    batch = reward_batch(samples, [None, Image.new("RGB", (64, 64)), None], [Completion(None, ("red",)), drawn, drawn])
    assert batch.texts == [["red"], ["so", "drawn"], ["so", "drawn"]]
    assert batch.bits is None
    assert [[source.size for source in sources] for sources in batch.source_images] == [[(90, 50)], [(64, 64)], []]
    assert reward_batch(samples[1:], [None] * 2, [drawn] * 2).bits.shape == (2, 4, 1, 4, 8)
    assert reward_batch(samples[:1], [None], [Completion(None)]).bits is None


def test_what_is_sent_arrives():
    made, images = mixed(), [Image.new("RGB", (3, 5), "blue"), None]
    notes, tensors = completion_message(made)
    notes, tensors = unpacked(packed(notes, tensors | image_tensors(images)))
    for one, other in zip(made, completions_in(notes, tensors), strict=True):
        assert (one.texts, one.episode, one.shape) == (other.texts, other.episode, other.shape)
        assert one.drawing is None or torch.equal(one.drawing.bits, other.drawing.bits)
    assert [image and image.tobytes() for image in images_in(tensors, 2)] == [images[0].tobytes(), None]


def test_a_decoding_process_scores_what_this_one_would(nano_checkpoint, tmp_path):
    here = LocalScorer(Painter(), ScoredList(suite(), SETTINGS), None)
    lists = {"rewards": ScoredList(suite(), SETTINGS, [sample.record for sample in SAMPLES])}
    made, policy, found = mixed(), nullcontext(), []

    def ask():
        connection = DecoderConnection(tmp_path / "socket")
        there = RemoteScorer(connection, "rewards", lists["rewards"], DecoderSizes.of_checkpoint(nano_checkpoint))
        for options in ({}, {"apart": [4, 5, 6, 7]}):
            found.append(there.begin(made, SAMPLES, policy=policy, keep=[0, 4, 5], **options)())
        found.append(there.compare(made[4:8], SAMPLES[4:8], found[0][0][4:5] + found[1][0][5:8], policy))
        found.append(there.compare([], [], [], policy))
        connection.close()

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        decoding = DecoderProcess(tmp_path / "socket", clients=1)
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        decoding.serve(Painter(), lists)
        asking.join()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    (images, table), (apart_images, apart), compared, nothing = found
    expected_images, expected = here.begin(made, SAMPLES, policy=policy)()
    assert [n for n, image in enumerate(images) if image] == [0, 4]  # nothing was drawn by 5
    assert [n for n, image in enumerate(apart_images) if image] == [0, 4, 6, 7]
    assert all(image is None or image.tobytes() == expected_images[n].tobytes() for n, image in enumerate(images))
    torch.testing.assert_close(table.values, expected.values, equal_nan=True, rtol=0, atol=0)
    assert table.details == expected.details
    assert apart.values[4:8, :3].isnan().all()
    torch.testing.assert_close(compared.values[:, :3], expected.values[4:8, :3], equal_nan=True, rtol=0, atol=0)
    assert nothing.values.shape == (0, 4)


def test_a_group_on_two_processes_is_compared_with_all_that_it_made(tmp_path):
    """The second group straddles them: one of its samples wrote and drew nothing."""
    done = run_warm(ROOT / "tests" / "support" / "mixed_completions.py", tmp_path, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    shares = [json.loads((tmp_path / f"share-{rank}.json").read_text()) for rank in range(2)]
    found = {key: shares[0][key] + shares[1][key] for key in shares[0]}
    here = LocalScorer(Painter(), ScoredList(suite(), SETTINGS), None)
    assert found == contents(*here.begin(mixed(), SAMPLES, policy=nullcontext())())
    assert all(row[0] is not None for row in found["values"])  # asked of all
    assert [n for n, row in enumerate(found["values"]) if row[2] is None] == [5, 8, 9, 10, 11]
