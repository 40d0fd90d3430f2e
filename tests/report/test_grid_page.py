"""The page of a folder as text: small for many pictures, lazy, addressed rightly, and safe from what goes in."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from strict_page import Page

from convlens.errors import ConvLensError, ImageError
from convlens.report import GridRow, MapScales, TrueClass, render_grid
from convlens.types import Attribution, Explanation, Meta, Neighbour, Neighbourhood, Prediction, Reply
from convlens.visualization.colourbar import ColourScale

METHODS = ("saliency", "guided_backprop", "occlusion", "integrated_gradients")
NAMES = (*METHODS, "neighbours")
DESCRIPTIONS = {name: (f"what {name} shows.", f"what {name} does not show.") for name in NAMES}
META = Meta("0123456789abcdef" * 4, "logit", "normalised", "float32", "cpu", relu_calls_seen=49, relu_calls_ruled=48)


def encoded(width: int, height: int, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 90, 40)).save(buffer, form)
    return buffer.getvalue()


VIEW, THUMBNAIL, OVERLAY, HEATMAP = (
    encoded(240, 224, "PNG"), encoded(192, 192, "JPEG"), encoded(224, 220, "PNG"), encoded(9, 7, "PNG")
)  # fmt: skip


def explanation(method: str, n: int = 0, *, label: str = "tabby", meta: Meta = META) -> Explanation:
    values_NCHW = np.zeros((1, 3, 5, 7), np.float32)
    meta = replace(meta, seconds=0.125 + n, forwards=3)
    result = Attribution(values_NCHW, np.array([7.25 + n / 7]), np.array([n % 1000]), method, {"score": "logit"}, meta)
    return Explanation(method, method, result, label, 41.5, OVERLAY, HEATMAP)


def neighbours(*near: Neighbour) -> Explanation:
    return Explanation("neighbours", "neighbours", Neighbourhood((near,), "neighbours", {"k": 2}, META), "", 3.25)


def row(n: int = 0, *explanations: Explanation, name: str = "", folder: str = "", label: str = "tabby") -> GridRow:
    stem = f"ILSVRC2012_val_{n:08}"
    guesses = tuple(Prediction((n + i) % 1000, f"{label} {i}", 0.5 / 2**i, 9.0 - i) for i in range(6))
    reply = Reply("net", "1.0", META.weights_sha256, f"r-{n}", "cpu", guesses, explanations, (), {"forward": 38.25})
    files = {"view": VIEW, "view_file": "view.png", "thumbnail": THUMBNAIL, "thumbnail_file": "thumbnail.jpg"}
    return GridRow(name or f"{stem}.JPEG", folder or stem, reply, **files)


def page_of(*rows: GridRow, title: str = "A title", model: str = "net") -> str:
    return render_grid(
        rows=rows, title=title, model=model, descriptions=DESCRIPTIONS, titles={}, downloads=("predictions.csv",)
    )


def data_of(html: str) -> Any:
    _, _, after = html.partition('<script type="application/json" id="data">')
    return json.loads(after.partition("</script>")[0])


def addresses(picture: Any) -> list[str]:
    """Every file that the details of a picture refer to."""
    files = [picture["view"], *(file for card in picture["cards"] for file in card.get("images", {}).values())]
    files += [near[3] for card in picture["cards"] for near in card.get("neighbours", [])]
    return [f"{picture['folder']}/{file[0]}" for file in files if file]


def test_a_page_of_500_pictures_and_four_methods_is_small_and_loads_no_picture_before_it_is_seen() -> None:
    labelled = [explanation(method, n, label=f"a label of some length, {n}") for n in range(500) for method in METHODS]
    rows = [row(n, *labelled[4 * n : 4 * n + 4], label=f"a label of some length, {n}") for n in range(500)]
    html = page_of(*rows)
    assert len(html.encode()) < 2_000_000
    images = Page(html).all("img")
    assert len(images) == 500
    assert [image for image in images if (image["loading"], image["decoding"]) != ("lazy", "async")] == []
    assert {(image["width"], image["height"]) for image in images} == {("192", "192")}
    assert len(data_of(html)["pictures"][499]["cards"]) == 4


def test_every_image_is_a_file_beside_the_page_and_says_its_size() -> None:
    html = page_of(row(7, explanation("saliency"), neighbours(Neighbour("a/1.jpg", "a cat", 0.5, THUMBNAIL))))
    folder = "ILSVRC2012_val_00000007"
    assert [image["src"] for image in Page(html).all("img")] == [f"{folder}/thumbnail.jpg"]
    (picture,) = data_of(html)["pictures"]
    assert addresses(picture) == [
        f"{folder}/{name}" for name in ("view.png", "saliency.overlay.png", "saliency.heatmap.png", "neighbours.1.jpg")
    ]
    assert picture["view"][1:] == [240, 224]
    assert picture["cards"][0]["images"] == {
        "overlay": ["saliency.overlay.png", 224, 220],
        "heatmap": ["saliency.heatmap.png", 9, 7],
    }
    assert "base64" not in html


# By RFC 3986: what has a meaning in an address, and every byte beyond ASCII, is written as %XX.
@pytest.mark.parametrize(
    ("folder", "address"),
    [("a b#c?d%e", "a%20b%23c%3Fd%25e"), ("Käfer", "K%C3%A4fer"), ("\udcff", "%FF"), ('"><b>', "%22%3E%3Cb%3E")],
)
def test_a_folder_of_any_name_is_addressed_so_that_it_is_found(folder: str, address: str) -> None:
    html = page_of(row(0, explanation("saliency"), folder=folder))
    assert Page(html).all("img")[0]["src"] == f"{address}/thumbnail.jpg"
    assert addresses(data_of(html)["pictures"][0])[0] == f"{address}/view.png"


HOSTILE = {
    "script": "<script>alert(1)</script>",
    "double quote": '" onload="alert(1)',
    "end of a raw element": "</script></title></style><b>",
    "entity": "&lt;b&gt; &amp",
    "template": "{{ 7 * 7 }}{% raw %}",
    "newline": "two\nlines",
    "comment": "<!-- <script>",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_appears_as_text_and_adds_no_element(text: str) -> None:
    warned = replace(META, warnings=(text,), layer=text)
    near = neighbours(Neighbour(text, text, 1.0, THUMBNAIL))
    hostile = page_of(
        row(0, explanation("saliency", label=text, meta=warned), near, name=text, label=text), title=text, model=text
    )
    calm = page_of(row(0, explanation("saliency", meta=replace(warned, warnings=("w",), layer="l")), near, name="n"))
    tags_and_attributes = [(tag, sorted(result)) for tag, result in Page(hostile).elements]
    assert tags_and_attributes == [(tag, sorted(result)) for tag, result in Page(calm).elements]
    (picture,) = data_of(hostile)["pictures"]
    card, nearest = picture["cards"]
    assert picture["name"] == card["target"][0] == card["warnings"][0] == text
    assert nearest["neighbours"][0][0] == nearest["neighbours"][0][2] == text


@pytest.mark.parametrize(("given", "shown"), [("\x00", "␀"), ("\x1b", "␛"), ("\udcff", "\ufffd"), ("\u202e", "\ufffd")])
def test_a_character_that_disguises_a_name_is_replaced_in_the_grid_and_in_the_details(given: str, shown: str) -> None:
    html = page_of(row(0, explanation("saliency"), name=f"before{given}after", folder="f"))
    html.encode("utf-8")
    assert f"before{shown}after" in Page(html).text
    assert data_of(html)["pictures"][0]["name"] == f"before{shown}after"


def test_the_page_may_load_images_from_its_own_place_and_nothing_else_from_anywhere() -> None:
    html = page_of(row(0, explanation("saliency")))
    (policy,) = [meta["content"] or "" for meta in Page(html).all("meta") if "http-equiv" in meta]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "'self' file: data:"
    assert rules["script-src"].startswith("'sha256-") and rules["style-src"].startswith("'sha256-")
    html = html.replace("http://www.w3.org/2000/svg", "")  # the name of a language, which nobody fetches
    assert "http:" not in html and "https:" not in html and "url(" not in html and "@import" not in html


# By hand: probabilities .5, .25, .125, .0625, .03125 (the sixth is left out), the rest from the values above.
def test_the_details_say_all_that_the_reply_does() -> None:
    near = neighbours(Neighbour("cats/1.jpg", "a cat", 0.5, THUMBNAIL), Neighbour("cats/2.jpg", "a lynx", 12.375))
    data = data_of(page_of(row(3, explanation("saliency"), near)))
    (picture,) = data["pictures"]
    assert [guess[1:] for guess in picture["predictions"]] == [
        ["tabby 0", 0.5, "50.0 %"], ["tabby 1", 0.25, "25.0 %"], ["tabby 2", 0.125, "12.5 %"],
        ["tabby 3", 0.0625, "6.2 %"], ["tabby 4", 0.03125, "3.1 %"],
    ]  # fmt: skip
    assert (picture["request"], picture["timing"]) == ("r-3", [["forward", "38 ms"]])
    card, nearest = picture["cards"]
    assert (card["time"], card["target"], card["arrays"]) == ("42 ms", ["tabby", "logit", "7.25"], "saliency.npz")
    assert nearest["neighbours"][0] == ["a cat", "0.500", "cats/1.jpg", ["neighbours.1.jpg", 192, 192]]
    assert nearest["neighbours"][1] == ["a lynx", "12.375", "cats/2.jpg", None]
    facts = {name: value for name, value, _ in (data["facts"][number] for number in card["facts"])}
    assert (facts["score"], facts["map size"], facts["ReLU calls"]) == ("logit", "3 × 5 × 7", "49 seen, 48 ruled")
    assert data["methods"]["saliency"] == ["Saliency", "what saliency shows.", "what saliency does not show."]


def test_what_many_results_have_in_common_is_in_the_page_once() -> None:
    html = page_of(*(row(n, *(explanation(method) for method in METHODS)) for n in range(3)))
    assert html.count("49 seen, 48 ruled") == 1
    assert html.count("what occlusion does not show.") == 1


def test_the_menus_list_the_classes_and_the_methods_that_there_are() -> None:
    page = Page(page_of(row(5, explanation("saliency")), row(5, explanation("occlusion")), row(2, neighbours())))
    assert [option["value"] for option in page.all("option")] == [
        "", "2", "5", "given", "name", "high", "low", "label", "", "saliency", "occlusion"
    ]  # fmt: skip
    assert "tabby 0 (2)" in page.text and "tabby 0 (1)" in page.text


# By hand: of 0, 1 and 3 the first guess is the true class, of 2 the second, of 4 none of the five that are listed.
def test_answers_are_right_wrong_and_missed_by_the_true_classes() -> None:
    rows = [row(n, explanation("saliency")) for n in (0, 1, 2, 3, 4, 5)]
    truths = [TrueClass(n, f"class {n}") for n in (0, 1, 3, 3, 700)]
    html = page_of(*(replace(each, true_class=truth) for each, truth in zip(rows, [*truths, None], strict=True)))
    page = Page(html)
    assert "right (3)" in page.text and "wrong (2)" in page.text
    assert [picture["truth"] for picture in data_of(html)["pictures"]] == [
        ["class 0", True, True], ["class 1", True, True], ["class 3", False, True], ["class 3", True, True],
        ["class 700", False, False], None,
    ]  # fmt: skip
    assert [span.get("class") for span in page.all("span")].count("misses") == 2


def test_without_true_classes_no_menu_asks_for_them() -> None:
    assert "answer" not in [select.get("id") for select in Page(page_of(row(0))).all("select")]


@pytest.mark.parametrize(
    ("drawn", "bar"),
    [
        (ColourScale("diverging", 0.5), ["diverging", "\u22120.5", "0", "0.5"]),
        (ColourScale("sequential", 3.0), ["sequential", "0", "1.5", "3"]),
        (ColourScale("grey", 0.000123456), ["grey", "\u22120.000123", "0", "0.000123"]),
    ],
    ids=lambda value: getattr(value, "colours", ""),
)
def test_a_map_says_in_numbers_what_its_colours_stand_for(drawn: ColourScale, bar: list[str]) -> None:
    scales = {"saliency": MapScales(heatmap=drawn)}
    html = page_of(replace(row(0, explanation("saliency"), explanation("occlusion")), scales=scales))
    first, second = data_of(html)["pictures"][0]["cards"]
    assert (first["bars"], second["bars"]) == ({"heatmap": bar}, {})


def test_only_a_picture_with_a_warning_of_its_own_is_marked() -> None:
    warned = explanation("saliency", meta=replace(META, warnings=("of the method",)))
    odd = row(2, warned)
    odd = replace(odd, reply=replace(odd.reply, warnings=("of this picture",)))
    page = Page(page_of(row(1, warned), odd, row(3, warned)))
    assert [span.get("class") for span in page.all("span")].count("warns") == 1


def test_pictures_without_predictions_or_images_still_have_a_tile() -> None:
    bare = GridRow("", "f", Reply("net", "", "", "", "", (), (), (), {}), b"", "view.png", b"", "thumbnail.jpg")
    page = Page(page_of(bare))
    assert "(no name)" in page.text and "no image" in page.text
    assert page.all("img") == []
    assert "no images in this report" in Page(page_of()).text


def test_a_method_without_a_description_is_refused_by_name() -> None:
    odd = replace(explanation("saliency"), method="tea_leaves")
    with pytest.raises(ConvLensError, match=r"'tea_leaves'.*neighbours"):
        page_of(row(0, odd))


def test_bytes_that_are_no_image_are_refused() -> None:
    odd = replace(explanation("saliency"), overlay_png=b"<svg onload=alert(1)>")
    with pytest.raises(ImageError, match="PNG or JPEG"):
        page_of(row(0, odd))
