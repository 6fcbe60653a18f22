"""Texts drawn as images for the tests of `ocr`: fonts, sizes, several lines, long texts, CJK, what makes reading hard.

Latin fonts are matplotlib's, which the project needs anyway; the Chinese ones come with the development extra.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

SIZE = (512, 512)
PARAGRAPH = (
    "Seven wizards quietly mix a large bowl of green soup\n"
    "and read the morning news before the first train\n"
    "leaves the old station at half past nine. Nobody\n"
    "minds the rain, for the stove is warm and dry."
)


@dataclass(frozen=True)
class Drawn:
    """A text and how it is drawn: the stem of matplotlib's font file, or "chinese sans" or "chinese serif"; size in
    pixels, slant in degrees, standard deviation of noise on 0 to 255."""

    text: str
    font: str = "DejaVuSans"
    size: int = 48
    color: str = "black"
    background: str = "white"
    slant: float = 0.0
    noise: float = 0.0

    def image(self) -> Image.Image:
        image = Image.new("RGB", SIZE, self.background)
        where = {"fill": self.color, "font": font(self.font, self.size), "anchor": "mm", "spacing": self.size // 3}
        ImageDraw.Draw(image).multiline_text((256, 256), self.text, **where)
        if self.slant:
            image = image.rotate(self.slant, Image.Resampling.BICUBIC, fillcolor=self.background)
        if self.noise:
            drawn = np.random.default_rng(0).normal(0, self.noise, (*SIZE, 3))
            image = Image.fromarray(np.clip(np.asarray(image) + drawn, 0, 255).astype(np.uint8))
        return image


def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    if name.startswith("chinese"):
        fonts = pytest.importorskip("pylopdf_fonts_zh_cn", reason="Chinese fonts come with the extra 'dev'")
        path = fonts.serif_path() if name.endswith("serif") else fonts.sans_path()
    else:
        path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    return ImageFont.truetype(str(path), size)


TEXTS = {
    "fonts and sizes": [
        Drawn("OPEN", size=14),
        Drawn("OPEN", size=150),
        Drawn("A", size=200),
        Drawn("Breathe deeply", size=10),
        Drawn("Mind the Gap", "DejaVuSans-Bold", 56),
        Drawn("Autumn Colors Mix", "DejaVuSans-Oblique", 44),
        Drawn("Take With Food", "DejaVuSerif", 44),
        Drawn("don't panic!", "DejaVuSerif-Italic", 56),
        Drawn("git push --force", "DejaVuSansMono", 40),
        Drawn("Wish You Were Here", "STIXGeneral", 52),
        Drawn("Dear Mrs. Ramsay", "STIXGeneralItalic", 52),
        Drawn("First Place Winner", "cmb10", 44),
        Drawn("System Overload", "cmtt10", 44),
        Drawn("+49 170 5550123", "DejaVuSansMono-Bold", 44),
        Drawn("Café Déjà Vu, Straße 7", size=36),
        Drawn("50% off (today only)", "cmss10", 40),
    ],
    "several lines": [
        Drawn("Keep\nGoing", size=96),
        Drawn("Final Exam\nVersion A", "DejaVuSerif", 64),
        Drawn("Follow\nthe Crumbs", "STIXGeneralItalic", 80),
        Drawn("SALE\n50% OFF\nends Sunday", "DejaVuSans-Bold", 64),
        Drawn("Gate B12\nBoarding 9:45", "DejaVuSansMono", 48),
        Drawn("to be\nor\nnot to be", "cmr10", 72),
    ],
    "long texts": [
        Drawn(PARAGRAPH, size=16),
        Drawn(PARAGRAPH, "STIXGeneral", 20),
        Drawn(PARAGRAPH, "DejaVuSerif", 15),
    ],
    "Chinese and Japanese": [
        Drawn("你好世界", "chinese sans", 96),
        Drawn("欢迎光临", "chinese sans", 32),
        Drawn("北京大学", "chinese serif", 24),
        Drawn("福", "chinese serif", 240, "gold", "darkred"),
        Drawn("春眠不觉晓\n处处闻啼鸟", "chinese serif", 64),
        Drawn("小心\n地滑", "chinese sans", 140),
        Drawn("营业时间 9:00-18:00", "chinese sans", 44),
        Drawn("请勿吸烟！谢谢。", "chinese sans", 56),
        Drawn("新\n年\n快\n乐", "chinese serif", 80),  # a column
        Drawn("机器学习是人工智能的一个分支\n它让计算机从数据中学习规律", "chinese sans", 32),
        Drawn("歡迎光臨臺灣", "chinese sans", 60),
        Drawn("東京駅へようこそ", "chinese sans", 56),
    ],
    "hard to read": [
        Drawn("Quiet Hours", color="#e0e0e0"),
        Drawn("Sunset Bar", "DejaVuSans-Bold", 64, "white", "#c06030"),
        Drawn("Night Market", "DejaVuSans-Bold", 56, noise=120),
        Drawn("Night Market", "STIXGeneralItalic", 40, noise=120),
        Drawn("Hidden Door", size=24, color="#707070", background="#606060"),
        Drawn("Hidden Door", "STIXGeneral", 24, "#666666", "#606060", noise=30),
        Drawn("Slippery\nwhen wet", size=56, slant=20),
        Drawn("Slippery\nwhen wet", size=56, slant=-40),
        Drawn("Upside down", size=56, slant=180),
        Drawn("Il1| O0 S5", size=56),
        Drawn("“Yes!” – (no?) … maybe", size=36),
        Drawn("tiny tiny print", size=8, noise=10),
    ],
}
