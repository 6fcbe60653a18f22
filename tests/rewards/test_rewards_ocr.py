"""`ocr` reads real rendered text; its formula and its reading orders are checked without reading."""

import logging
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from support.rendered_texts import TEXTS, Drawn

from rewards import RewardBatch, RewardError, RewardSuite
from rewards.ocr.quotations import quoted_texts
from rewards.ocr.reading_order import reading_orders
from rewards.ocr.reward import OCR, target_texts
from rewards.ocr.text_distance import normalize, text_score
from uniar.errors import UserError


def written(text, size=48, color="black", background="white"):
    image = Image.new("RGB", (448, 192), background)
    ImageDraw.Draw(image).text((24, 40), text, font=ImageFont.load_default(size=size), fill=color)
    return image


def placed(**texts):
    """Words at (x, y) of an image."""
    image = Image.new("RGB", (512, 512), "white")
    for text, place in texts.items():
        ImageDraw.Draw(image).text(place[:2], text, font=ImageFont.load_default(size=(*place, 44)[2]), fill="black")
    return image


@pytest.fixture(scope="module")
def reader():
    reward = OCR(threads=1)
    reward.load()
    return reward


def scores(reward, prompts, images, metadata=None):
    return [item and item["score"] for item in reward.score(RewardBatch(prompts, images, metadata=metadata))]


# (drawn, how, what metadata or prompt ask for, score)
DRAWN = [
    ("Open 24 Hours", {}, "open 24 hours", 1.0),
    ("EXIT", {"color": "white", "background": "darkgreen", "size": 64}, "Exit", 1.0),
    ("Hello\nWorld", {}, "hello world", 1.0),  # two lines, read top to bottom
    ("OPEN", {}, "OPEN 24", 4 / 6),  # 2 of 6 letters are missing
    ("CLOSED", {}, "CLOSER", 5 / 6),
    ("OPEN 24 HOURS", {}, "OPEN", 0.0),  # it occurs, but 7 letters too many cost all marks
    ("", {}, "OPEN", 0.0),  # an image without text
]


def test_ocr_reads_rendered_text(reader):
    prompts = [f'a sign that says "{target}"' for _, _, target, _ in DRAWN]
    found = reader.score(RewardBatch(prompts, [written(text, **how) for text, how, _, _ in DRAWN]))
    assert [item["score"] for item in found] == pytest.approx([score for *_, score in DRAWN])
    assert [found[0]["why"], found[-1]["why"]] == ["read 'Open 24 Hours'", "no text read"]


@pytest.mark.parametrize("drawn", [TEXTS["long texts"][1], TEXTS["hard to read"][6]], ids=["long", "slanting"])
def test_long_and_slanting_texts_are_read(reader, drawn):
    assert scores(reader, ["x"], [drawn.image()], [{"text": drawn.text}]) == [1]


@pytest.mark.parametrize("index", [0, 6, 11], ids=["two words", "numbers between", "Japanese"])
def test_chinese_and_japanese_are_read(reader, index):
    drawn = TEXTS["Chinese and Japanese"][index]
    assert scores(reader, [f"一块牌子，上面写着「{drawn.text}」"], [drawn.image()]) == [1]


@pytest.mark.slow
def test_read_rate(reader):
    """The numbers in docs/rewards.md."""
    rates = {}
    for kind, drawn in TEXTS.items():
        found = scores(reader, ["x"] * len(drawn), [d.image() for d in drawn], [{"text": d.text} for d in drawn])
        rates[kind] = (sum(score == 1 for score in found), len(drawn), statistics.mean(found))
        print(f"{kind}: {rates[kind][0]} of {rates[kind][1]} read without a mistake, mean score {rates[kind][2]:.2f}")
    assert sum(count for _, count, _ in rates.values()) >= 30
    for kind, (right, count, mean) in rates.items():
        assert right >= (0.7 if kind == "hard to read" else 0.9) * count, kind
        assert mean >= (0.85 if kind == "hard to read" else 0.95), kind


def test_several_texts_may_stand_anywhere(reader):
    image = placed(TEA=(40, 60), POEMS=(40, 400))
    prompt = 'a book "Poems" and a cup "Tea"'  # read from the top, the cup comes first
    assert scores(reader, [prompt], [image]) == [1]
    given = OCR(order="given", threads=1)
    given._reader, given._alphabet = reader._reader, reader._alphabet
    assert scores(given, [prompt], [image]) == pytest.approx([2 / 8])


def test_words_of_one_line_are_read_in_order_and_columns_as_columns(reader):
    rising = placed(one=(20, 140), two=(180, 120), three=(330, 100))
    sizes = placed(today=(20, 235), SALE=(230, 180, 96))
    columns = placed(left=(30, 100), column=(30, 160), right=(320, 103), side=(320, 158))
    texts = ["one two three", "today sale", "left column right side"]
    assert scores(reader, ["x"] * 3, [rising, sizes, columns], [{"text": text} for text in texts]) == [1, 1, 1]


def test_the_reader_gets_bgr_which_it_expects():
    reward, given = OCR(), []

    class Nothing:
        txts = None

    reward._reader = lambda pixels: given.append(pixels) or Nothing
    assert reward.read(Image.new("RGB", (3, 2), (10, 20, 30))) == [""]
    assert given[0].shape == (2, 3, 3)
    assert given[0][0, 0].tolist() == [30, 20, 10]


def pretending(text):
    """A reward that reads `text` in every image, and the images it was given."""
    suite = RewardSuite.from_recipe([{"use": "ocr", "threads": 1}])
    [reward], read = suite.rewards, []
    reward.load()
    reward.read = lambda image: read.append(image) or [text]
    return suite, read


def test_only_samples_with_a_target_are_read_and_scored():
    suite, read = pretending("hi")
    images = [Image.new("RGB", (4, 4)) for _ in range(4)]
    metadata = [{}, {"text": "hi"}, {"text": None}, {"text": "  "}]
    values = suite.score(RewardBatch(["no target", "x", 'says "ha"', "blank"], images, metadata=metadata)).values[:, 0]
    assert values[1] == 1
    assert values[2] == 0.5
    assert [index for index in range(4) if math.isnan(values[index])] == [0, 3]
    assert read == [images[1], images[2]]


def test_letters_that_the_reader_does_not_know_give_no_score_and_symbols_cost_nothing(caplog):
    suite, read = pretending("I NY")
    images = [Image.new("RGB", (4, 4))] * 4
    texts = ["안녕", "I 안 NY", "I \N{BLACK HEART SUIT}\N{ROCKET}\ue000 NY", "\ue000"]
    with caplog.at_level(logging.WARNING):
        table = suite.score(RewardBatch(["x"] * 4, images, metadata=[{"text": text} for text in texts]))
    values = table.values[:, 0]
    assert [math.isnan(value) for value in values] == [True, True, False, True]
    assert 0.5 < values[2] < 1  # the heart can be read and is missing
    assert len(read) == 1
    assert "no ocr score for '안녕': 녕 안: the reader does not know these letters" in caplog.text
    assert table.failures == {"ocr": 0}


def test_score_formula():
    assert text_score(["kitten"], ["sitting"]) == pytest.approx(1 - 3 / 7)
    assert text_score(["O p E n"], ["open"]) == 1
    assert text_score([""], ["abc"]) == 0
    assert text_score(["abcabcabc"], ["abc"]) == 0  # clipped: never below 0
    assert text_score(["xabc"], ["abc"]) == pytest.approx(2 / 3)
    assert text_score(["ＯＰＥＮ！"], ["open!"]) == 1  # full-width forms, as the reader returns among Chinese
    assert text_score(["abc", "cab"], ["cab"]) == 1  # the nearest reading
    assert normalize(" Straße\n7 ") == "strasse7"
    assert normalize("“Don’t” – ‘now’ …") == "\"don't\"-'now'..."
    with pytest.raises(ValueError, match="targets are blank"):
        text_score(["abc"], ["", " "])


def edits(a, b):
    """The edit distance by its recurrence."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def test_score_is_the_formula_on_random_texts():
    rng = np.random.default_rng(0)
    for _ in range(200):
        read, target = ("".join(rng.choice(list("abc d"), rng.integers(1, 12))) for _ in range(2))
        a, b = read.replace(" ", ""), target.replace(" ", "")
        if b:
            assert text_score([read], [target]) == pytest.approx(1 - min(edits(a, b), len(b)) / len(b))


def test_targets_in_any_order():
    assert text_score(["one two three"], ["three", "one", "two"], any_order=True) == 1
    assert text_score(["one two three"], ["three", "one", "two"]) < 1
    assert text_score(["one two"], ["two", "two"], any_order=True) == pytest.approx(1 - 3 / 6)  # no text serves twice
    assert text_score(["one two three"], ["two"], any_order=True) == 0  # text beyond the targets still costs
    words = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel"]
    assert text_score([" ".join(words)], words[::-1], any_order=True) == 1  # more than are permuted
    assert text_score([" ".join(words)], [*words[:7], "golf hotel"], any_order=True) > 0.8


def line(*words, x=0.0, y=0.0, height=40.0, gap=20.0):
    """Boxes of words side by side; a word is its width."""
    boxes = []
    for width in words:
        boxes.append([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])
        x += width + gap
    return np.array(boxes)


def turned(boxes, degrees):
    angle = math.radians(degrees)
    return boxes @ np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def shuffled(boxes, seed):
    order = np.random.default_rng(seed).permutation(len(boxes))
    return boxes[order], [int(place) for place in np.argsort(order)]


@pytest.mark.parametrize("degrees", [0, 8, -15, 40])
def test_lines_are_read_left_to_right_and_top_to_bottom_at_any_slant(degrees):
    page = np.concatenate([line(100, 60, 140), line(80, 180, y=55), line(200, 50, 40, y=110)])
    for seed in range(5):
        boxes, expected = shuffled(turned(page, degrees), seed)
        assert reading_orders(boxes)[0] == expected


def test_columns_give_a_second_order():
    page = np.concatenate([line(150), line(120, y=50), line(160, x=400, y=4), line(130, x=400, y=54)])
    boxes, (a, b, c, d) = shuffled(page, 0)
    assert reading_orders(boxes) == [[a, c, b, d], [a, b, c, d]]
    assert reading_orders(page[:2]) == [[0, 1]]
    assert reading_orders(page[:0]) == [[]]


def test_a_column_of_characters_joins_no_line():
    column = np.array([[(300.0, 0.0), (340.0, 0.0), (340.0, 260.0), (300.0, 260.0)]])
    page = np.concatenate([line(200), line(200, y=50), line(200, y=100), column])
    assert [0, 1, 2, 3] in reading_orders(page)


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
        ("„zwei Wörter“, »drei« und ‚vier‘", ["zwei Wörter", "drei", "vier"]),
        ('一块写着"开放"的牌子', ["开放"]),
        ("nothing here", []),
        ('an empty pair ""', []),
        # Inches and feet
        ('5" pipe', []),
        ('a 12" record beside a 7" single', []),
        ('a 12" record titled "Blue" beside a 7" single', ["Blue"]),
        ("a 6'2\" man with a sign 'HI' and a 5' fence", ["HI"]),
        ("a 24''x36'' poster that says \"SALE\"", ["SALE"]),
        ('a sign that says "Buy a 12" pizza"', []),
        ('a door "Room 12" and a door "7"', ["Room 12", "7"]),
        # All of the prompt
        ('"a red sign"', []),
        (' "OPEN". ', []),
        ("'a red sign'", []),
        ("“a sign that says ‘OPEN’”", ["OPEN"]),
        ('"a sign that says "OPEN" on it"', ["OPEN"]),
        ("\"a mug with 'don't panic' on it\"", ["don't panic"]),
        ('"OPEN" and "CLOSED"', ["OPEN", "CLOSED"]),
        # Apostrophes
        ('dogs\' "OPEN" sign', ["OPEN"]),
        ("the dogs’ “OPEN” sign", ["OPEN"]),
        ("a '90s poster of the dogs' \"OPEN\" day", ["OPEN"]),
        ("rock 'n' roll on a sign 'LIVE' at the dogs' bar", ["LIVE"]),
        ("a sign 'Tom's Diner' here", ["Tom's Diner"]),
        ("a sign 'the girls' room' here", []),
        ("a sign 'Dogs' and a sign 'Cats'", ["Dogs", "Cats"]),
        ("a sign '24'", ["24"]),
        # In one another, escaped, doubled, and without the other half
        ("a sign \"the 'BIG' sale\"", ["the 'BIG' sale"]),
        ("a sign 'say \"hi\" now' here", ['say "hi" now']),
        (r"a sign that says \"OPEN\" here", ["OPEN"]),
        ('a sign that says ""OPEN"" here', ["OPEN"]),
        ("a sign that says &quot;OPEN&quot;", ["OPEN"]),
        ("a sign that says ``OPEN''", ["OPEN"]),
        ('a sign that says" OPEN', []),
        ('a sign that says "OPEN and nothing else', []),
        ('a sign "OPEN" and a door "CLOSED', []),
        ("a sign “OPEN and nothing else", []),
        ("a sign OPEN” and nothing else", []),
        ('says "A", "B"; ("C")/"D"!', ["A", "B", "C", "D"]),
        ('a sign " OPEN " here', [" OPEN "]),
    ],
)
def test_quoted_texts(prompt, texts):
    assert quoted_texts(prompt) == texts


def test_target_prefers_metadata():
    assert target_texts('says "a"', {"text": "b"}) == ["b"]
    assert target_texts('says "a" and "b"', {}) == ["a", "b"]
    assert target_texts("x", {"text": ["a", "b"]}) == ["a", "b"]
    assert target_texts("x", {"sign": "a"}, key="sign") == ["a"]
    assert target_texts("x", {}) == []


def test_metadata_that_is_no_text_is_an_error_of_its_sample_alone(caplog):
    batch = RewardBatch(["p", 'says "hi"'], [Image.new("RGB", (4, 4))] * 2, metadata=[{"text": 24}, {}])
    with pytest.raises(RewardError, match="metadata 'text' is 24; a string or a list of strings is needed") as caught:
        pretending("hi")[0].score(batch)
    assert caught.value.index == 0
    suite = RewardSuite.from_recipe([{"use": "ocr", "threads": 1, "on_error": "skip"}])
    suite.rewards[0].read = lambda image: ["hi"]
    table = suite.score(batch)
    assert math.isnan(table.values[0, 0])
    assert table.values[1, 0] == 1
    assert table.failures == {"ocr": 1}


def test_another_recognition_model(reader, tmp_path):
    import rapidocr

    [bundled] = (Path(rapidocr.__file__).parent / "models").glob("*_rec_*.onnx")
    own = tmp_path / "recognizer.onnx"
    own.write_bytes(bundled.read_bytes())
    reward = OCR(recognizer=str(own), threads=1)
    assert scores(reward, ['a sign "Bread"'], [Drawn("Bread").image()]) == [1]
    own.write_bytes(b"no model")
    with pytest.raises(UserError, match=r"recognizer .*recognizer.onnx cannot be read as a recognition model: "):
        OCR(recognizer=str(own)).load()
    with pytest.raises(UserError, match=r"nowhere.onnx cannot be read as a recognition model"):
        OCR(recognizer=str(tmp_path / "nowhere.onnx")).load()


def test_settings_out_of_range_are_refused():
    with pytest.raises(UserError, match=r"min_confidence is 1\.5"):
        OCR(min_confidence=1.5)
    with pytest.raises(UserError, match="threads is 0"):
        OCR(threads=0)
