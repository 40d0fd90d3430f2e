"""The report as text and as a file: what goes in comes out, and nothing that goes in can break out."""

from __future__ import annotations

import base64
import io
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from strict_page import Page

from convlens.errors import ConvLensError, ImageError
from convlens.report import MapScales, ReportRow, TrueClass, render, write
from convlens.types import Attribution, Explanation, Meta, Neighbour, Neighbourhood, Prediction, Reply
from convlens.visualization.colourbar import ColourScale

DESCRIPTIONS = {
    "saliency": ("which pixels matter.", "whether they speak for or against."),
    "neighbours": ("the nearest pictures.", "why they are near."),
}
SHA = "0123456789abcdef" * 4
META = Meta(
    weights_sha256=SHA,
    target_kind="logit",
    input_space="normalised",
    dtype="float32",
    device="cpu",
    relu_calls_seen=49,
    relu_calls_ruled=48,
    forwards=3,
    backwards=2,
    seconds=0.125,
    warnings=("the map is flat",),
)


def encoded(shade: int, *, size: int = 8, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (shade, 20, 30)).save(buffer, form)
    return buffer.getvalue()


PHOTOGRAPH, OVERLAY, HEATMAP = encoded(1, size=224), encoded(2, size=224), encoded(3)
THUMBNAIL = encoded(4, form="JPEG")


def saliency(
    *, overlay: bytes = OVERLAY, heatmap: bytes = HEATMAP, label: str = "tabby", meta: Meta = META
) -> Explanation:
    values_NCHW = np.zeros((1, 3, 5, 7), np.float32)
    result = Attribution(values_NCHW, np.array([7.25]), np.array([281]), "saliency", {"window": 32}, meta)
    return Explanation("saliency", "saliency", result, label, 41.5, overlay, heatmap)


def neighbours(*near: Neighbour) -> Explanation:
    return Explanation("neighbours", "neighbours", Neighbourhood((near,), "neighbours", {"count": 2}, META), "", 3.25)


NEAR = neighbours(Neighbour("cats/1.jpg", "a cat", 0.5, THUMBNAIL), Neighbour("cats/2.jpg", "a lynx", 12.375))


def row(*explanations: Explanation, name: str = "cat.png", label: str = "tabby", request_id: str = "r-1") -> ReportRow:
    guesses = tuple(Prediction(i, f"{label} {i}", 0.5 / 2**i, 9.0 - i) for i in range(6))
    reply = Reply("net", "1.0", SHA, request_id, "cpu", guesses, explanations, (), {"forward": 38.25})
    return ReportRow(name, PHOTOGRAPH, reply)


def page_of(*rows: ReportRow, title: str = "A title", model: str = "net", notes: tuple[str, ...] = ()) -> str:
    return render(rows=rows, title=title, model=model, notes=notes, descriptions=DESCRIPTIONS)


def pictures(page: Page) -> list[bytes]:
    return [base64.b64decode((image["src"] or "").partition(";base64,")[2], validate=True) for image in page.all("img")]


HOSTILE = {
    "script": "<script>alert(1)</script>",
    "double quote": '" onload="alert(1)',
    "single quote": "' onload='alert(1)",
    "end of a raw element": "</title></style></script><b>",
    "entity": "&lt;b&gt; &amp",
    "template": "{{ 7 * 7 }}{% raw %}",
    "newline": "two\nlines",
    "right to left": "\u05d7\u05ea\u05d5\u05dc",
    "comment": "<!-- -->",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_appears_as_text_and_adds_no_element(text: str) -> None:
    hostile = row(
        saliency(label=text, meta=replace(META, warnings=(text,), layer=text)),
        neighbours(Neighbour(text, text, 1.0, THUMBNAIL)),
        name=text, label=text, request_id=text,
    )  # fmt: skip
    calm = row(
        saliency(meta=replace(META, layer="l")),
        neighbours(Neighbour("i", "l", 1.0, THUMBNAIL)),
        name="n",
        request_id="i",
    )
    page = Page(page_of(hostile, title=text, model=text, notes=(text,)))
    plain = Page(page_of(calm, title="t", model="m", notes=("n",)))
    tags_and_attributes = [(tag, sorted(result)) for tag, result in page.elements]
    assert tags_and_attributes == [(tag, sorted(result)) for tag, result in plain.elements]
    # title ×2, model, note, name ×2, request, target, warning, layer, neighbour ×2; labels ×3 in the table and ×5 below
    assert page.text.count(text) == 20


UNPRINTABLE = [("\x00", "␀"), ("\x1b", "␛"), ("\r", "␍"), ("\x7f", "␡"), ("\x85", "\ufffd"), ("\udcff", "\ufffd")]
OVERRIDES = [("\u202e", "\ufffd"), ("\u2066", "\ufffd")]


@pytest.mark.parametrize(("given", "shown"), UNPRINTABLE + OVERRIDES)
def test_a_character_that_html_forbids_or_that_disguises_a_name_is_replaced_by_a_visible_symbol(
    given: str, shown: str
) -> None:
    html = page_of(row(name=f"before{given}after"))
    assert given not in html
    assert f"before{shown}after" in Page(html).text
    html.encode("utf-8")


def test_the_page_asks_nobody_for_anything() -> None:
    html = page_of(row(saliency(), NEAR))
    page = Page(html)
    assert "http:" not in html and "https:" not in html and "@import" not in html and "url(" not in html
    assert all(source.startswith(("data:image/png;", "data:image/jpeg;")) for source in page.values("src"))
    assert all(target.startswith("#") for target in page.values("href"))
    assert {tag for tag, _ in page.elements}.isdisjoint({"link", "iframe", "object", "embed", "base", "form"})


def test_each_image_is_in_the_page_byte_for_byte_and_in_order() -> None:
    assert pictures(Page(page_of(row(saliency(), NEAR)))) == [PHOTOGRAPH, OVERLAY, HEATMAP, THUMBNAIL]


@pytest.mark.parametrize(("shape", "media_type"), [("PNG", "image/png"), ("JPEG", "image/jpeg")])
def test_the_media_type_is_that_of_the_bytes(shape: str, media_type: str) -> None:
    seen = replace(row(), view_png_or_jpeg=encoded(9, form=shape))
    assert (Page(page_of(seen)).all("img")[0]["src"] or "").startswith(f"data:{media_type};base64,")


def test_bytes_that_are_no_image_are_refused_with_what_they_begin_with() -> None:
    with pytest.raises(ImageError, match=r"<svg onl.*PNG or JPEG"):
        page_of(row(saliency(overlay=b"<svg onload=alert(1)>")))


def test_only_maps_of_few_pixels_are_drawn_with_hard_edges() -> None:
    photograph, overlay, heatmap = Page(page_of(row(saliency()))).all("img")
    assert "few-pixels" in (heatmap["class"] or "")
    assert "few-pixels" not in (photograph["class"] or "")
    assert "few-pixels" not in (overlay["class"] or "")


def test_the_true_class_stands_below_the_predictions_and_where_it_is_another_in_the_overview() -> None:
    right, wrong = (replace(row(saliency()), true_class=TrueClass(n, f"truth {n}")) for n in (0, 3))
    page = Page(page_of(right, wrong, row(saliency())))
    assert [paragraph["class"] for paragraph in page.all("p") if "truth" in (paragraph.get("class") or "")] == [
        "truth",
        "truth misses",
    ]
    assert page.text.count("truth 0") == 1 and page.text.count("truth 3") == 2


def test_each_map_has_a_bar_that_says_in_numbers_what_its_colours_stand_for() -> None:
    scales = {"saliency": MapScales(ColourScale("over-sequential", 0.25), ColourScale("sequential", 0.5))}
    page = Page(page_of(replace(row(saliency()), scales=scales)))
    bars = [span["class"] for span in page.all("span") if (span.get("class") or "").startswith("swatch ")]
    assert bars[-2:] == ["swatch over-sequential", "swatch sequential"]
    assert "0.1250.25" in "".join(page.text.split())


def test_every_link_leads_to_one_place_even_where_names_are_the_same() -> None:
    page = Page(page_of(row(saliency(), saliency(), NEAR), row(saliency())))
    ids = list(page.values("id"))
    assert len(set(ids)) == len(ids)
    assert {target[1:] for target in page.values("href")} <= set(ids)
    assert set(page.values("aria-labelledby")) <= set(ids)


def test_headings_go_down_by_one_step_and_every_image_says_what_it_is() -> None:
    page = Page(page_of(row(saliency(), NEAR), row()))
    levels = [int(tag[1]) for tag, _ in page.elements if tag in {"h1", "h2", "h3", "h4"}]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))
    assert all("cat.png" in (image["alt"] or "") or "cats/1.jpg" in (image["alt"] or "") for image in page.all("img"))
    assert page.all("html") == [{"lang": "en"}]


# By hand: probabilities .5, .25, .125, .0625, .03125 (the sixth is left out), the rest from the values above.
@pytest.mark.parametrize(
    "text",
    ["50.0 %", "25.0 %", "12.5 %", "6.2 %", "3.1 %", "tabby 4", "logit 7.25", "42 ms", "3.2 ms", "38 ms", "a lynx",
     "distance 0.500", "distance 12.375", "cats/2.jpg", "49 seen, 48 ruled", "3 forward, 2 backward in 0.125\u00a0s",
     "the map is flat", SHA[:12], SHA, "which pixels matter.", "whether they speak for or against.",
     "why they are near.", "7.25 (logit)", "3 × 5 × 7"],
)  # fmt: skip
def test_all_values_can_be_read(text: str) -> None:
    assert text in Page(page_of(row(saliency(), NEAR))).text


def test_exact_numbers_lie_behind_the_rounded_ones() -> None:
    exact = [value["value"] for value in Page(page_of(row(saliency(), NEAR))).all("data")]
    assert {"0.03125", "41.5", "7.25", "12.375", "38.25"} <= set(exact)
    assert "0.015625" not in exact  # the sixth prediction


def test_bars_are_as_long_as_the_probabilities() -> None:
    widths = [bar["width"] for bar in Page(page_of(row())).all("rect") if bar["class"] == "bar-part"]
    assert widths == ["50.000", "25.000", "12.500", "6.250", "3.125"]


@pytest.mark.parametrize(
    ("share", "shown"), [(0.0, "0.0 %"), (1e-9, "< 0.1 %"), (0.0005, "0.1 %"), (0.9999, "> 99.9 %"), (1.0, "100.0 %")]
)
def test_a_percentage_never_rounds_to_none_or_all(share: float, shown: str) -> None:
    plain = row()
    one = replace(plain, reply=replace(plain.reply, predictions=(Prediction(0, "it", share, 1.0),)))
    assert f"it {shown}" in Page(page_of(one)).text


def test_a_probability_target_is_a_percentage_and_a_negative_logit_has_a_minus() -> None:
    explanation = saliency()
    result = explanation.result
    assert isinstance(result, Attribution)
    share = replace(META, target_kind="probability")
    sure = replace(explanation, result=replace(result, score_N=np.array([0.75]), meta=share))
    low = replace(explanation, result=replace(result, score_N=np.array([-1.5])))
    text = Page(page_of(row(sure, low))).text
    assert "probability 75.0 %" in text and "logit −1.50" in text


@pytest.mark.parametrize(("overlay", "heatmap", "images"), [(b"", HEATMAP, 2), (OVERLAY, b"", 2), (b"", b"", 1)])
def test_a_card_without_images_still_says_everything_else(overlay: bytes, heatmap: bytes, images: int) -> None:
    page = Page(page_of(row(saliency(overlay=overlay, heatmap=heatmap))))
    assert len(page.all("img")) == images
    assert "logit 7.25" in page.text and "which pixels matter." in page.text


def test_rows_without_answers_and_reports_without_rows_are_still_pages() -> None:
    bare = ReportRow("", b"", Reply("net", "", "", "", "", (), (), (), {}))
    assert "(no name)" in Page(page_of(bare, row(neighbours()))).text
    assert "no images in this report" in Page(page_of()).text


def test_a_method_without_a_description_is_refused_by_name() -> None:
    odd = replace(saliency(), method="tea_leaves")
    with pytest.raises(ConvLensError, match=r"'tea_leaves'.*neighbours, saliency"):
        page_of(row(odd))


def test_a_methods_title_replaces_its_name() -> None:
    plain = render(rows=[row(saliency())], title="t", model="m", descriptions=DESCRIPTIONS)
    named = render(rows=[row(saliency())], title="t", model="m", descriptions=DESCRIPTIONS, titles={"saliency": "Zzz"})
    assert "Saliency" in Page(plain).text and "Zzz" not in plain
    assert "Zzz" in Page(named).text and "Saliency" not in Page(named).text


def test_two_sets_of_weights_are_both_named() -> None:
    other = row()
    other = replace(other, reply=replace(other.reply, weights_sha256="f" * 64))
    page = Page(page_of(row(), other, row()))
    shown = [code["title"] for code in page.all("code")]
    assert shown == [f"sha256 {SHA}", f"sha256 {'f' * 64}"]


def save(path: Path, *rows: ReportRow) -> None:
    write(path, page_of(*rows))


def test_the_file_holds_the_page_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    save(path, row(saliency(), NEAR))
    assert path.read_text(encoding="utf-8") == page_of(row(saliency(), NEAR))
    assert list(tmp_path.iterdir()) == [path]


def test_a_page_that_cannot_be_made_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ImageError):
        save(path, row(saliency(overlay=b"no picture")))
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_disk_that_fills_up_halfway_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def half(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(ConvLensError, match=r"report\.html.*No space left"):
        save(path, row())
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", ["missing/report.html", "file/report.html", "folder"])
def test_a_place_that_cannot_be_written_is_named_in_the_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConvLensError, match=f"{place}.*existing folder"):
        save(tmp_path / place, row())
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]
