"""`ocr` reads real rendered text; its formula is checked without reading."""

import math

import pytest
from PIL import Image, ImageDraw, ImageFont

from rewards import RewardBatch, RewardError, RewardSuite
from rewards.ocr import OCR, normalize, quoted_texts, target_text, text_score
from uniar.errors import UserError


def written(text, size=48, color="black", background="white"):
    image = Image.new("RGB", (448, 192), background)
    ImageDraw.Draw(image).text((24, 40), text, font=ImageFont.load_default(size=size), fill=color)
    return image


@pytest.fixture(scope="module")
def reader():
    reward = OCR(threads=1)
    reward.load()
    return reward


# (drawn, how, what metadata or prompt ask for, score)
TEXTS = [
    ("Open 24 Hours", {}, "open 24 hours", 1.0),
    ("EXIT", {"color": "white", "background": "darkgreen", "size": 64}, "Exit", 1.0),
    ("Hello\nWorld", {}, "hello world", 1.0),  # two lines, read top to bottom
    ("coffee & tea", {"color": "darkred", "background": "beige", "size": 40}, "Coffee & Tea", 1.0),
    ("OPEN", {}, "OPEN 24", 4 / 6),  # 2 of 6 letters are missing
    ("CLOSED", {}, "CLOSER", 5 / 6),
    ("OPEN 24 HOURS", {}, "OPEN", 0.0),  # it occurs, but 7 letters too many cost all marks
    ("", {}, "OPEN", 0.0),  # an image without text
]


def test_ocr_reads_rendered_text(reader):
    prompts = [f'a sign that says "{target}"' for _, _, target, _ in TEXTS]
    batch = RewardBatch(prompts, [written(text, **how) for text, how, _, _ in TEXTS])
    assert reader.score(batch) == pytest.approx([score for *_, score in TEXTS])


def test_the_reader_gets_bgr_which_it_expects():
    reward, given = OCR(), []

    class Nothing:
        txts = None

    reward._reader = lambda pixels: given.append(pixels) or Nothing
    assert reward.read(Image.new("RGB", (3, 2), (10, 20, 30))) == ""
    assert given[0].shape == (2, 3, 3)
    assert given[0][0, 0].tolist() == [30, 20, 10]


def test_only_samples_with_a_target_are_read_and_scored():
    suite = RewardSuite.from_recipe([{"use": "ocr", "threads": 1}])
    read = []
    [reward] = suite.rewards
    reward.read = lambda image: read.append(image) or "hi"
    images = [Image.new("RGB", (4, 4)) for _ in range(4)]
    metadata = [{}, {"text": "hi"}, {"text": None}, {"text": "  "}]
    values = suite.score(RewardBatch(["no target", "x", 'says "ha"', "blank"], images, metadata=metadata)).values[:, 0]
    assert values[1] == 1
    assert values[2] == 0.5
    assert [index for index in range(4) if math.isnan(values[index])] == [0, 3]
    assert read == [images[1], images[2]]


def test_score_formula():
    assert text_score("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert text_score("O p E n", "open") == 1
    assert text_score("", "abc") == 0
    assert text_score("abcabcabc", "abc") == 0  # clipped: never below 0
    assert text_score("xabc", "abc") == pytest.approx(2 / 3)
    assert text_score("ＯＰＥＮ！", "open!") == 1  # full-width forms, as the reader returns among Chinese
    assert normalize(" Straße\n7 ") == "strasse7"


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('a sign "Open" and a door "No. 5"', ["Open", "No. 5"]),
        ("a sign 'Open'", ["Open"]),
        ("a mug that says ‘don’t panic’ in red", ["don’t panic"]),
        ("a mug that says 'don't panic' in red", ["don't panic"]),
        ("the dog's bowl and the cats' basket, isn't it", []),
        ("the cats' basket with 'Tom' on it", ["Tom"]),
        ("“two words” and 「你好」 and «là»", ["two words", "你好", "là"]),
        ("nothing here", []),
        ('an empty pair ""', []),
        ('5" pipe', []),
    ],
)
def test_quoted_texts(prompt, texts):
    assert quoted_texts(prompt) == texts


def test_target_prefers_metadata_and_joins():
    assert target_text('says "a"', {"text": "b"}) == "b"
    assert target_text('says "a" and "b"', {}) == "a b"
    assert target_text("x", {"text": ["a", "b"]}) == "a b"
    assert target_text("x", {"sign": "a"}, key="sign") == "a"
    assert target_text("x", {}) == ""


def test_metadata_that_is_no_text_is_an_error():
    suite = RewardSuite.from_recipe([{"use": "ocr", "threads": 1}])
    batch = RewardBatch(["p"], [Image.new("RGB", (4, 4))], metadata=[{"text": 24}])
    with pytest.raises(
        RewardError, match="failed: metadata 'text' is 24; a text or a list of texts is needed, on sample 0"
    ):
        suite.score(batch)


def test_settings_out_of_range_are_refused():
    with pytest.raises(UserError, match=r"min_confidence is 1\.5"):
        OCR(min_confidence=1.5)
    with pytest.raises(UserError, match="threads is 0"):
        OCR(threads=0)
