"""Annotation files as COCO, Pascal VOC, tables and masks write them, and hostile ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convlens.errors import RequestError
from convlens.evaluation.boxes import objects_by_id, read_boxes
from convlens.evaluation.objects import ObjectBox, ObjectMask, ObjectPolygons


def written(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_table_gives_each_image_its_boxes(tmp_path: Path) -> None:
    table = "file,xmin,ymin,xmax,ymax,label\na.jpg,1,2,3.5,4,cat\n./b/c.jpg,0,0,9,9,\na.jpg,-5,-5,1,1,dog\n"
    assert read_boxes(written(tmp_path / "boxes.csv", table)) == {
        "a.jpg": (ObjectBox((1, 2, 3.5, 4), "cat"), ObjectBox((-5, -5, 1, 1), "dog")),
        "b/c.jpg": (ObjectBox((0, 0, 9, 9)),),
    }


def test_a_table_may_come_from_a_spreadsheet(tmp_path: Path) -> None:
    table = b'\xef\xbb\xbfid, ymin,xmin,xmax,ymax,file\r\n7,2,1,3,4,"a, b.jpg"\r\n\r\n'
    assert read_boxes(written(tmp_path / "boxes.CSV", table)) == {"a, b.jpg": (ObjectBox((1, 2, 3, 4)),)}


HEADER = "file,xmin,ymin,xmax,ymax\n"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "lacks file, xmin, ymin, xmax, ymax"),
        ("a.jpg,1,2,3,4\n", "first line lacks file"),
        ("file,xmin,ymin,xmax,label\n", "lacks ymax"),
        ("file,xmin,ymin,xmax,ymax,xmin\n", "names a column twice"),
        (HEADER, "no boxes below its first line"),
        (HEADER + "a.jpg,1,2,3,4\nb.jpg,1,2,3\n", "line 3 has 4 fields, the first line 5"),
        (HEADER + "a.jpg,1,2,3,4,5\n", "line 2 has 6 fields"),
        (HEADER + ",1,2,3,4\n", "line 2 names no file"),
        (HEADER + "a.jpg,1,two,3,4\n", "line 2: ymin is 'two'; it must be a number"),
        (HEADER + "a.jpg,1,nan,3,4\n", "line 2: ymin is 'nan'"),
        (HEADER + "a.jpg,1,2,inf,4\n", "line 2: xmax is 'inf'"),
        (HEADER + "a.jpg,1,2,1e300,4\n", "line 2: xmax is '1e300'"),
        (HEADER + "a.jpg,1,,3,4\n", "line 2: ymin is ''"),
        (HEADER + "a.jpg,3,2,1,4\n", r"line 2: the box from \(3, 2\) to \(1, 4\) is empty"),
        (HEADER + "a.jpg,1,2,3,2\n", "line 2: the box .* is empty"),
        (HEADER + '"a.jpg,1,2,3,4\n', "cannot be read as a CSV table"),
        (HEADER + "a" * 200_000 + ",1,2,3,4\n", "cannot be read as a CSV table"),
        (b"file,xmin,ymin,xmax,ymax\n\xff.jpg,1,2,3,4\n", "save it as UTF-8"),
    ],
)
def test_a_table_that_is_wrong_is_refused_with_its_line(table: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        read_boxes(written(tmp_path / "boxes.csv", table))


# --- Pascal VOC -------------------------------------------------------------------------------------------------------

VOC = """<annotation>
  <folder>VOC2007</folder><filename>{filename}</filename>
  <size><width>{width}</width><height>375</height><depth>3</depth></size>
  <object>
    <name>person</name><pose>Left</pose><difficult>1</difficult>
    <bndbox><xmin>1</xmin><ymin>52.5</ymin><xmax>500</xmax><ymax>375</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>9</xmin><ymin>60</ymin><xmax>20</xmax><ymax>70</ymax></bndbox></part>
  </object>
  <object><name>dog</name><bndbox><xmax>8</xmax><xmin>8</xmin><ymax>9</ymax><ymin>9</ymin></bndbox></object>
</annotation>"""


def test_pascal_voc_counts_from_1_and_its_last_pixel_belongs_to_the_box(tmp_path: Path) -> None:
    written(tmp_path / "cats" / "000001.xml", VOC.format(filename="000001.jpg", width=500))
    (name, (person, dog)), *_ = read_boxes(tmp_path).items()
    assert name == "cats/000001.jpg"
    assert person == ObjectBox((0, 51.5, 500, 375), "person")
    assert dog == ObjectBox((7, 8, 8, 9), "dog")
    assert person.size == (500, 375)


@pytest.mark.parametrize(
    ("filename", "name"),
    [("", "n1"), ("n1", "n1"), ("C:\\pictures\\n1.JPEG", "n1.JPEG"), ("../../etc/n1.jpg", "n1.jpg")],
)
def test_of_a_file_name_in_pascal_voc_only_its_last_part_counts(filename: str, name: str, tmp_path: Path) -> None:
    written(tmp_path / "n1.xml", VOC.format(filename=filename, width=500))
    assert list(read_boxes(tmp_path)) == [name]


def test_a_width_of_0_in_pascal_voc_means_that_it_is_not_known(tmp_path: Path) -> None:
    written(tmp_path / "n1.xml", VOC.format(filename="n1.jpg", width=0))
    assert read_boxes(tmp_path)["n1.jpg"][0].size is None


LAUGHS = "<!DOCTYPE a [<!ENTITY a0 'ha'>{}]><annotation>&a30;</annotation>".format(
    "".join(f"<!ENTITY a{n} '&a{n - 1};&a{n - 1};'>" for n in range(1, 31))
)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (LAUGHS, "remove its DOCTYPE"),
        ("<!DOCTYPE a SYSTEM 'file:///etc/passwd'><annotation/>", "remove its DOCTYPE"),
        ("", "is no XML"),
        ("<annotation>", "is no XML"),
        ("<?xml version='1.0' encoding='klingon'?><annotation/>", "is no XML"),
        ("<html/>", "holds <html>"),
        (" " * 2**22 + "<annotation/>", "has more than 4194304 bytes"),
        (VOC.format(filename="a.jpg", width="nan"), "a side is 'nan'"),
        (VOC.replace("<xmin>1</xmin>", "").format(filename="a.jpg", width=5), r"object 1 \(a.jpg\) has no xmin"),
        (
            VOC.replace("<xmin>8<", "<xmin>9<").format(filename="a.jpg", width=5),
            r"object 2 \(a.jpg\): the box .* empty",
        ),
        (VOC.replace("52.5", "top").format(filename="a.jpg", width=5), "ymin is 'top'"),
    ],
)
def test_xml_that_is_hostile_or_no_annotation_is_refused(xml: str, message: str, tmp_path: Path) -> None:
    written(tmp_path / "a.xml", xml)
    with pytest.raises(RequestError, match=message):
        read_boxes(tmp_path)


def test_deeply_nested_xml_does_not_end_the_process(tmp_path: Path) -> None:
    written(tmp_path / "a.xml", "<annotation>" + "<a>" * 300_000 + "</a>" * 300_000 + "</annotation>")
    assert read_boxes(tmp_path) == {"a": ()}


def test_two_files_of_the_same_image_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        written(tmp_path / f"{name}.xml", VOC.format(filename="a.jpg", width=500))
    with pytest.raises(RequestError, match=r"b.xml marks objects in 'a.jpg', as a file before"):
        read_boxes(tmp_path)


# --- COCO -------------------------------------------------------------------------------------------------------------

# Its pixels, and what pycocotools 2.0.11 makes of them.
PIXELS_HW = np.zeros((23, 17), bool)
PIXELS_HW[3:11, 2:9] = PIXELS_HW[5:20, 8:15] = True
PIXELS_HW[7, 4] = False
BY_PYCOCOTOOLS = "a18?00LBO>5000009IN0000000000Y1"


def coco(*annotations: dict[str, Any], **changes: Any) -> str:
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 17, "height": 23}, {"id": 2, "file_name": "b/c.jpg"}],
        "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
        "annotations": [{"id": n, "image_id": 1, **each} for n, each in enumerate(annotations, start=70)],
    }
    return json.dumps({name: value for name, value in (document | changes).items() if value is not None})


def test_a_bbox_of_coco_is_left_top_width_and_height(tmp_path: Path) -> None:
    file = written(tmp_path / "coco.json", coco({"bbox": [1.5, 2, 10, 4], "category_id": 18, "segmentation": []}))
    boxes = read_boxes(file)
    assert boxes == {"a.jpg": (ObjectBox((1.5, 2, 11.5, 6), "dog"),), "b/c.jpg": ()}
    assert boxes["a.jpg"][0].size == (17, 23)


def test_polygons_of_coco_are_the_object_rather_than_its_bbox(tmp_path: Path) -> None:
    annotation = {"bbox": [0, 0, 9, 9], "segmentation": [[0, 0, 4, 0, 4, 4], [5, 5, 6, 5, 6, 6, 5, 6]]}
    parts = (((0, 0), (4, 0), (4, 4)), ((5, 5), (6, 5), (6, 6), (5, 6)))
    assert read_boxes(written(tmp_path / "coco.json", coco(annotation)))["a.jpg"] == (ObjectPolygons(parts),)


@pytest.mark.parametrize(
    ("counts", "pixels_HW"),
    [
        (BY_PYCOCOTOOLS, PIXELS_HW),
        ("0W<", np.ones((23, 17), bool)),  # by pycocotools, too
        ([0, 391], np.ones((23, 17), bool)),
        ([23, 23, 345], np.arange(23 * 17).reshape(17, 23).T // 23 == 1),  # the second column
    ],
)
def test_run_lengths_of_coco_give_the_pixels_they_were_made_of(
    counts: Any, pixels_HW: np.ndarray, tmp_path: Path
) -> None:
    annotation = {"iscrowd": 1, "segmentation": {"size": [23, 17], "counts": counts}}
    (marked,) = read_boxes(written(tmp_path / "coco.json", coco(annotation)))["a.jpg"]
    assert marked.size == (17, 23)
    np.testing.assert_array_equal(marked.covers(np.arange(17) + 0.5, np.arange(23) + 0.5), pixels_HW)


def rle(counts: Any, size: Any = (23, 17)) -> dict[str, Any]:
    return {"segmentation": {"size": size, "counts": counts}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        (b"\xff\xfe\xfa", "cannot be read as JSON"),
        ("[]", "holds a list; a COCO file is an object"),
        (coco(images=None), "no list 'images'"),
        (coco(annotations=[1]), "no list 'annotations'"),
        (coco(categories=[{"id": 1}]), "category 1 has no name"),
        (coco(images=[{"id": 1}]), "image 1 has no file_name"),
        (coco(images=[{"id": True, "file_name": "a.jpg"}]), "id is True"),
        (coco(images=[{"id": 1, "file_name": "a.jpg", "width": 3}]), r"the size is \(3, None\)"),
        (coco(images=[{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]), "lists an image twice"),
        (coco(images=[{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "a.jpg"}]), "lists an image twice"),
        (coco({"image_id": 9}), "annotation 70: there is no image of id 9"),
        (coco({"image_id": [9]}), r"annotation 70: image_id is \[9\]"),
        (coco({"category_id": 9, "bbox": [1, 1, 1, 1]}), "annotation 70: there is no category of id 9"),
        (coco({"bbox": [1, 1, 1, 1]}, {}), r"annotation 71 \(a.jpg\): bbox is None"),
        (coco({"bbox": [1, 1, 1]}), "must be .left, top, width, height."),
        (coco({"bbox": [1, 1, 0, 4]}), "is empty"),
        (coco({"bbox": [1, 1, -2, 4]}), "is empty"),
        (coco({"bbox": [1, 1, float("nan"), 4]}), "bbox is nan"),
        (coco({"bbox": [1, 1, 10**400, 4]}), "bbox is 1000"),
        (coco({"bbox": [1, 1, True, 4]}), "bbox is True"),
        (coco({"bbox": [1, 1, None, 4]}), "bbox is None"),
        (coco({"segmentation": [[0, 0, 1, 1]]}), "three corners or more"),
        (coco({"segmentation": [[0, 0, 1, 1, 2, 2, 3]]}), "three corners or more"),
        (coco({"segmentation": [[0, 0, 1, 1, 2, float("inf")]]}), "segmentation is inf"),
        (coco({"segmentation": "0d0"}), "must be polygons or run lengths"),
        (coco(rle([391], [23])), "it must be .height, width."),
        (coco(rle([391], [23, -17])), "two whole numbers"),
        (coco(rle([0, 391], [17, 23])), "the mask is 23 × 17, its image 17 × 23"),
        (coco(rle([391])), "0 of the object"),
        (coco(rle([0, 10**18])), "the runs cover 1000000000000000000 pixels"),
        (coco(rle([-1, 392])), "not run lengths"),
        (coco(rle([0.5, 390.5])), "not run lengths"),
        (coco(rle(BY_PYCOCOTOOLS[:-1])), "the text is cut off|the runs cover"),
        (coco(rle("0W")), "the text is cut off"),
        (coco(rle("0 d")), "no text by pycocotools"),
        (coco(rle("o" * 50)), "no text by pycocotools"),
        (coco(rle("é")), "no text by pycocotools"),
    ],
)
def test_a_coco_file_that_is_wrong_is_refused_with_its_annotation(
    text: str | bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=message):
        read_boxes(written(tmp_path / "coco.json", text))


# --- masks ------------------------------------------------------------------------------------------------------------


def mask_image(kind: str) -> Image.Image:
    values_HW = PIXELS_HW.astype(np.uint8)
    if kind == "palette":  # 0 is white here: numbers count, not colours
        mask = Image.fromarray(values_HW * 3).convert("P")
        mask.putpalette([255, 255, 255] + [0, 0, 0] * 255)
        return mask
    return {
        "bits": lambda: Image.fromarray(PIXELS_HW),
        "grey": lambda: Image.fromarray(values_HW),  # 1 of 255
        "16 bits": lambda: Image.fromarray(PIXELS_HW.astype(np.uint16)),  # 1 of 65535
    }[kind]()


@pytest.mark.parametrize("kind", ["bits", "grey", "16 bits", "palette"])
def test_pixels_of_a_mask_that_are_not_0_belong_to_the_object(kind: str, tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    mask_image(kind).save(tmp_path / "cats" / "one.jpg.PNG", "PNG")
    ((name, (marked,)),) = read_boxes(tmp_path).items()
    assert name == "cats/one.jpg"
    assert isinstance(marked, ObjectMask)
    assert marked.size == (17, 23)
    np.testing.assert_array_equal(marked.covers(np.arange(17) + 0.5, np.arange(23) + 0.5), PIXELS_HW)


def test_a_mask_of_zeros_is_an_image_without_objects(tmp_path: Path) -> None:
    Image.new("L", (5, 5)).save(tmp_path / "one.png")
    assert read_boxes(tmp_path) == {"one": ()}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_a_mask_of_colours_or_with_alpha_is_refused(mode: str, tmp_path: Path) -> None:
    Image.new(mode, (5, 5)).save(tmp_path / "one.png")
    with pytest.raises(RequestError, match=rf"one.png: a mask of colours \({mode}\)"):
        read_boxes(tmp_path)


def test_every_cut_within_a_masks_pixels_is_refused(tmp_path: Path) -> None:
    Image.fromarray(PIXELS_HW).save(tmp_path / "one.png")
    whole = (tmp_path / "one.png").read_bytes()
    # Before IEND are its length, and the checksums of the chunk and of the packed pixels.
    for length in range(whole.index(b"IEND") - 12):
        (tmp_path / "one.png").write_bytes(whole[:length])
        with pytest.raises(RequestError, match=r"one.png: its pixel data ends|one.png is no PNG"):
            read_boxes(tmp_path)


def test_a_mask_that_is_too_large_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("1", (8000, 8000)).save(tmp_path / "one.png")
    with pytest.raises(RequestError, match="8000 × 8000"):
        read_boxes(tmp_path)


# --- which file, and whose objects ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "path", "message"),
    [
        ([], "missing", "no such file or folder"),
        (["boxes.txt"], "boxes.txt", "give a COCO file"),
        ([".hidden/a.xml"], ".", "neither .xml nor .png files"),
        (["a.xml", "a.png"], ".", "both .xml and .png files"),
    ],
)
def test_what_is_no_annotation_is_refused(files: list[str], path: str, message: str, tmp_path: Path) -> None:
    for file in files:
        written(tmp_path / file, "")
    with pytest.raises(RequestError, match=message):
        read_boxes(tmp_path / path)


ONE, TWO = (ObjectBox((0, 0, 1, 1)),), (ObjectBox((1, 1, 2, 2)),)


def test_objects_are_found_by_an_images_whole_name_or_without_its_suffix() -> None:
    boxes = {"cats/1.jpg": ONE, "cats/2": TWO, "cats/1": TWO}
    assert objects_by_id(boxes, ["cats/1.jpg", "cats/2.jpeg", "dogs/1.jpg"]) == {"cats/1.jpg": ONE, "cats/2.jpeg": TWO}


def test_where_no_image_is_marked_both_ways_of_naming_are_shown() -> None:
    with pytest.raises(RequestError, match=r"any of 4 images: .*'a.jpg', 'b.jpg', 'c.jpg' …, the marked ones 'val/a"):
        objects_by_id({"val/a.jpg": ONE}, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
