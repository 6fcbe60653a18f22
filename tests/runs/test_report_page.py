"""The page of a run in a headless Chromium: it renders, filters and keys work, nothing is said and nothing fetched."""

import time
from pathlib import Path

import pytest
from support.browser import Browser
from support.run_folders import HOSTILE, write_run

from rl.report.page import write_report

pytestmark = pytest.mark.browser
SECTIONS = ("verdict", "warnings", "curves", "scores", "gallery", "lens", "groups", "questions", "reproduce")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    run = write_run(tmp_path_factory.mktemp("runs") / "mine", samples=90)
    write_report([run.path], run.report)
    return run.report


@pytest.fixture
def opened(browser, page) -> Browser:
    browser.said.clear()
    browser.asked.clear()
    browser.screen(1280, 900)
    browser.open(page)
    return browser


def cards(browser: Browser) -> list[str]:
    return browser.run("[...document.querySelectorAll('.card .prompt')].map((one) => one.textContent)")


def choose(browser: Browser, control: str, value: str) -> None:
    event = "input" if control == "text" else "change"
    browser.run(
        f"{control} = document.getElementById('{control}'); {control}.value = {value!r}; "
        f"{control}.dispatchEvent(new Event('{event}'))"
    )


def test_every_section_renders_and_nothing_leaves(opened, page):
    heights = opened.run(
        f"{list(SECTIONS)}.map((name) => document.getElementById(name).getBoundingClientRect().height)"
    )
    assert all(height > 60 for height in heights)
    assert opened.run("document.querySelectorAll('svg.chart').length") >= 8
    decoded = "Promise.all([...document.images].map((one) => one.decode())).then((all) => all.length)"
    assert opened.run(decoded) > 100
    assert opened.said == []
    assert [address for address in opened.asked if not address.startswith("data:")] == [page.as_uri()]


def test_text_of_prompts_and_rewards_is_text(opened):
    choose(opened, "text", "gamed")
    assert cards(opened) == [HOSTILE]
    opened.run("document.querySelector('.card').click()")
    assert HOSTILE in opened.run("document.getElementById('opened').textContent")
    opened.press("Escape")
    assert opened.run("document.title") == "mine"
    assert opened.run("document.querySelectorAll('script').length") == 2


def test_what_is_put_into_the_page_does_not_run(opened):
    """The policy in its head allows this page's own script alone, and no request."""
    opened.run("node = document.createElement('script'); node.textContent = 'document.title = 1'")
    opened.run("document.body.append(node)")
    assert opened.run("document.title") == "mine"
    refused = opened.run("fetch('https://example.com/').then(() => 'fetched', () => 'refused')")
    assert refused == "refused"


def test_what_samples_wrote_stands_below_their_picture_or_alone(opened):
    choose(opened, "order", "file")
    all_of = "[...document.querySelectorAll('.card[data-number=\"{}\"] {}')].map((one) => {})"
    shown = all_of.format("{}", ".made", "[one.textContent, !!one.querySelector('img')]")
    boxes = all_of.format("{}", ".pair > *", "one.clientHeight")
    assert opened.run(shown.format(0)) == []
    assert opened.run(shown.format(4)) == [["it should be rednow it is", True]] * 2
    assert [image for _, image in opened.run(shown.format(5))] == [False, False]
    assert opened.run(boxes.format(5)) == pytest.approx(opened.run(boxes.format(0)), abs=2)
    choose(opened, "text", "should be red")
    assert cards(opened) == ["a picture of thing 4"]
    choose(opened, "text", "")


def test_the_picture_asked_about_stands_beside_a_drawing_and_in_the_place_of_none(opened):
    choose(opened, "order", "file")
    shown = "[...document.querySelectorAll('.card[data-number=\"{}\"] img')].map((one) => [one.className, one.width])"
    plain, edit, answer = (opened.run(shown.format(number)) for number in (0, 6, 7))
    assert [name for name, _ in plain] == ["small", "small"]
    assert [name for name, _ in edit] == ["source small", "small", "small"]
    assert edit[0][1] < 0.7 * edit[1][1]
    assert [name for name, _ in answer] == ["source small"] * 2
    opened.run("document.querySelector('.card[data-number=\"7\"]').click()")
    figures = "[...document.querySelectorAll('#opened-pictures figure')]"
    said = opened.run(f"{figures}.map((one) => [one.textContent, !!one.querySelector('img')])")
    assert said == [["source", True], ["it is blueupdate 0", False], ["it is blueupdate 40, the best", False]]
    opened.press("Escape")


def test_filters_and_orders(opened):
    assert opened.run("document.getElementById('count').textContent") == "90 of 90 samples"
    assert len(cards(opened)) == 48
    opened.run("document.getElementById('more').click()")
    assert len(cards(opened)) == 90
    choose(opened, "kind", "counting")
    assert opened.run("document.getElementById('count').textContent") == "30 of 90 samples"
    choose(opened, "text", "missing")
    few = cards(opened)
    assert 0 < len(few) < 30
    choose(opened, "text", "THING 85")
    assert cards(opened) == ["a picture of thing 85"]
    choose(opened, "text", "")
    choose(opened, "kind", "")
    gains = "[...document.querySelectorAll('.card b')].map((one) => parseFloat(one.textContent.replace('−', '-')))"
    choose(opened, "order", "improved")
    improved = opened.run(gains)
    assert improved == sorted(improved, reverse=True)
    assert improved[0] == 1
    choose(opened, "order", "damaged")
    assert opened.run(gains) == sorted(opened.run(gains))
    choose(opened, "order", "file")
    assert cards(opened)[:3] == [f"a picture of thing {n}" for n in range(3)]


def test_by_keyboard_alone(opened):
    choose(opened, "order", "file")
    opened.press("/", "/")
    assert opened.run("document.activeElement.id") == "text"
    opened.press("Escape")
    opened.press("j", "j")
    opened.press("j", "j")
    opened.press("Enter")
    assert opened.run("document.getElementById('opened').open")
    prompt = "document.getElementById('opened-prompt').textContent"
    assert opened.run(prompt) == "a picture of thing 1"
    opened.press("ArrowRight")
    assert opened.run(prompt) == "a picture of thing 2"
    opened.press("ArrowLeft")
    opened.press("ArrowLeft")
    assert opened.run(prompt) == "a picture of thing 0"
    opened.press("Escape")
    assert not opened.run("document.getElementById('opened').open")
    assert opened.run("document.activeElement.dataset.number") == "0"


def test_a_point_opens_the_pictures_of_its_evaluation(opened):
    assert opened.run("document.getElementById('right').value") == "1"
    opened.run("document.querySelector('[data-step=\"0\"]').dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    assert opened.run("document.getElementById('right').value") == "0"


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_the_screen_and_can_be_read(opened, tmp_path, width, dark):
    opened.look(tmp_path / "shot.png", width, 844, dark=dark)
    assert (tmp_path / "shot.png").stat().st_size > 5_000
    assert opened.run("document.documentElement.scrollWidth") <= width
    brightness = """(name) => { const [r, g, b] = getComputedStyle(document.body)[name].match(/\\d+/g).map(Number);
        return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255; }"""
    paper, ink = (opened.run(f"({brightness})('{name}')") for name in ("backgroundColor", "color"))
    assert (paper < 0.2 and ink > 0.8) if dark else (paper > 0.9 and ink < 0.2)


def test_a_comparison_shows_both_runs(browser, tmp_path):
    one, two = (write_run(tmp_path / name, samples=30, rise=rise) for name, rise in (("one", 0.2), ("two", 0.5)))
    write_report([one.path, two.path], tmp_path / "both.html")
    browser.said.clear()
    browser.open(tmp_path / "both.html")
    browser.run("document.querySelector('.card').click()")
    figures = "[...document.querySelectorAll('#opened-pictures figcaption')].map((one) => one.textContent)"
    assert browser.run(figures) == ["one", "two"]
    assert browser.said == []


def test_a_long_run_opens_in_two_seconds(browser, tmp_path):
    run = write_run(tmp_path / "long", samples=500, steps=49, every=1, pictures=500, size=256)
    started = time.process_time()
    write_report([run.path], run.report)
    assert time.process_time() - started < 60
    assert run.report.stat().st_size < 15 * 10**6
    assert min(browser.open(run.report) for _ in range(3)) < 2
    assert browser.run("document.getElementById('count').textContent") == "500 of 500 samples"
