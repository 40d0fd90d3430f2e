"""Text in figures: every script's own letters, in the order in which they are read, and no empty boxes."""

from importlib import resources

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from convlens.visualization.text import _lines, drawable, text_image, text_width

SIZE = 40


def _ink(image_HWC: np.ndarray) -> np.ndarray:
    """Darkness 0..1 of the smallest rectangle that holds all of it."""
    dark_HW = 1 - image_HWC.mean(axis=2) / 255
    rows, columns = np.flatnonzero(dark_HW.any(axis=1)), np.flatnonzero(dark_HW.any(axis=0))
    return dark_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _drawn(text: str) -> np.ndarray:
    return _ink(text_image(text, size=SIZE, width=600))


def _by_pillow(text: str, package: str, file: str, face: int) -> np.ndarray:
    sheet = Image.new("RGB", (600, 120), "white")
    font = ImageFont.truetype(str(resources.files(package).joinpath(file)), SIZE, index=face)
    ImageDraw.Draw(sheet).text((20, 20), text, fill=(20, 20, 20), font=font)
    return _ink(np.asarray(sheet))


def _likeness(one_HW: np.ndarray, other_HW: np.ndarray) -> float:
    """Correlation of two drawings, brought to one size: hinting moves edges by a pixel."""
    image = Image.fromarray((one_HW * 255).astype(np.uint8)).resize(other_HW.shape[::-1], Image.Resampling.BILINEAR)
    return float(np.corrcoef(np.asarray(image).ravel(), other_HW.ravel())[0, 1])


def _best_likeness(image_HW: np.ndarray, part_HW: np.ndarray) -> float:
    """That of the part to the place of the image, from its left to its right end, which resembles it most."""
    height, width = part_HW.shape
    image_HW = np.pad(image_HW, ((max(0, height - len(image_HW)), 0), (0, 0)))[-height:]
    return max(_likeness(image_HW[:, x : x + width], part_HW) for x in range(image_HW.shape[1] - width + 1))


NOTO = [
    ("Q", "NotoSans[wght].ttf"),
    ("Ж", "NotoSans[wght].ttf"),
    ("λ", "NotoSans[wght].ttf"),
    ("ש", "NotoSansHebrew[wght].ttf"),
    ("ق", "NotoSansArabic[wght].ttf"),
    ("ह", "NotoSansDevanagari[wght].ttf"),
    ("ব", "NotoSansBengali[wght].ttf"),
    ("த", "NotoSansTamil[wght].ttf"),
    ("ท", "NotoSansThai[wght].ttf"),
    ("🐱", "NotoEmoji[wght].ttf"),
]
CJK = [(letter, "NotoSansCJK-Regular.ttc") for letter in ("猫", "标", "か", "한")]


@pytest.mark.parametrize(("letter", "file"), NOTO + CJK)
def test_a_letter_is_drawn_as_its_own_typeface_has_it(letter: str, file: str) -> None:
    package, face = ("noto_cjk_sans_otc", 2) if file.endswith(".ttc") else ("manimgx_fonts", 0)
    wanted = _by_pillow(letter, package, file, face)
    drawn = _drawn(letter)
    assert np.abs(np.subtract(drawn.shape, wanted.shape)).max() <= 2
    assert _likeness(drawn, wanted) > 0.85


def test_hebrew_is_read_from_right_to_left() -> None:
    aleph, shin, both = _drawn("א"), _drawn("ש"), _drawn("אש")
    assert _likeness(both[:, : shin.shape[1]], shin) > 0.95
    assert _likeness(both[:, -aleph.shape[1] :], aleph) > 0.95


def test_a_number_between_hebrew_words_is_read_from_left_to_right() -> None:
    word = _drawn("ש12א")
    assert _best_likeness(word, _drawn("12")) > 0.9 > _best_likeness(word, _drawn("21"))


def test_arabic_letters_are_joined() -> None:
    joined, apart = _drawn("ببب"), _drawn("ب\u200cب\u200cب")
    assert joined.any(axis=0).all()  # one stroke from end to end
    assert joined.shape[1] < apart.shape[1]


def test_a_devanagari_vowel_is_drawn_before_the_consonant_that_it_follows() -> None:
    consonant, syllable = _drawn("क"), _drawn("कि")
    rows = slice(-consonant.shape[0], None)
    assert _likeness(syllable[rows, -consonant.shape[1] :], consonant) > 0.9


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("cat \U00013000", "cat [U+13000]"),  # a hieroglyph
        ("gpj.\u202eexe", "gpj.[U+202E]exe"),
        ("\udc80", "[U+DC80]"),  # of a file name that is not UTF-8
        ("\x07", "[U+0007]"),
        ("猫 👨\u200d👩\u200d👧 ❤\ufe0f Ж", "猫 👨\u200d👩\u200d👧 ❤\ufe0f Ж"),
    ],
)
def test_a_letter_that_no_typeface_has_becomes_its_code_point(text: str, written: str) -> None:
    assert drawable(text) == written
    np.testing.assert_array_equal(text_image(text, size=12, width=200), text_image(written, size=12, width=200))


@pytest.mark.parametrize(
    ("word", "full", "lines"),
    [
        ("Border_collie.jpg", "Border_collie.jp", ["Border_collie.", "jpg"]),
        ("bicycle-built-for-two", "bicycle-built-for-t", ["bicycle-built-for-", "two"]),
        ("n02099712_Labrador", "n02099712_Labra", ["n02099712_", "Labrador"]),
        ("x_Labrador", "x_Labra", ["x_Labra", "dor"]),  # a line of two letters helps nobody
    ],
)
def test_a_file_name_is_broken_behind_its_marks(word: str, full: str, lines: list[str]) -> None:
    """Where the line would be ``full``."""
    assert _lines(word, 12, text_width(full, size=12)) == lines


def test_a_long_word_is_broken_between_letters_and_not_before_a_mark() -> None:
    # A line that began with a vowel sign would show it on a dotted circle: the ink would be more.
    one, many = (text_image("कि" * count, size=20, width=45) for count in (1, 8))
    assert many.shape[0] > 2 * one.shape[0]
    assert (255.0 - many).sum() == pytest.approx(8 * (255.0 - one).sum(), rel=0.03)  # glyphs touch


def test_no_text_is_an_empty_line() -> None:
    assert (text_image("", size=12, width=30) == 255).all()


def test_a_hyphen_lies_in_the_middle_of_its_line_as_beside_letters() -> None:
    alone, beside = text_image("-", size=SIZE, width=200), text_image("-x", size=SIZE, width=200)
    rows = [np.flatnonzero((image[:, :12] < 200).any(axis=(1, 2))) for image in (alone, beside)]
    np.testing.assert_array_equal(*rows)
