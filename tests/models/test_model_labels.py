"""Class names: found, refused, read from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convlens.errors import ModelError, TargetError
from convlens.models import find_class
from convlens.models.labels import imagenet_labels, read_labels

LABELS = ("tench", "Great Dane", "crane", "koala", "crane")


@pytest.mark.parametrize(
    ("wanted", "index"), [(0, 0), (4, 4), (np.int64(3), 3), ("tench", 0), ("GREAT dane", 1), (" koala ", 3)]
)
def test_a_class_is_found_by_index_and_by_label_in_any_case(wanted: int | str, index: int) -> None:
    assert find_class(LABELS, wanted) == index


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (5, "0..4"),
        (-1, "0..4"),
        (True, "True"),
        (1.0, "1.0"),
        (None, "None"),
        ("crane", "2 (crane), 4 (crane)"),
        ("koalla", "did you mean koala?"),
        ("great", "no class labelled 'great'"),
        ("3", "an index 0..4 works too"),
    ],
)
def test_what_is_no_class_is_refused_with_what_there_is(wanted: int | str, told: str) -> None:
    with pytest.raises(TargetError) as caught:
        find_class(LABELS, wanted)
    assert told in caught.value.message


def test_a_label_right_to_the_letter_wins_over_one_in_another_case() -> None:
    labels = imagenet_labels()  # 264 is the corgi, 474 the garment, in the synset order of ILSVRC 2012
    assert (find_class(labels, "Cardigan"), find_class(labels, "cardigan")) == (264, 474)
    with pytest.raises(TargetError, match=r"264 \(Cardigan\), 474 \(cardigan\)"):
        find_class(labels, "CARDIGAN")


def test_imagenet_labels_are_in_synset_order() -> None:
    labels = imagenet_labels()
    assert len(labels) == 1000
    assert {0: "tench", 281: "tabby", 388: "giant panda", 967: "espresso", 999: "toilet tissue"}.items() <= dict(
        enumerate(labels)
    ).items()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("l.txt", "red fox\nGreat Dane, big\nkoala\n"),
        ("l.labels", "\ufeffred fox\r\n  Great Dane, big  \r\nkoala"),
        ("l.json", '["red fox", "Great Dane, big", "koala"]'),
        ("l.csv", 'red fox,"Great Dane, big",koala\n'),
        ("l.csv", 'red fox\n"Great Dane, big"\nkoala\n'),
        ("l.csv", '2,koala\n0,red fox\n1,"Great Dane, big"\n'),
        ("l.csv", 'label,index\nred fox,0\n"Great Dane, big",1\nkoala,2\n'),
        ("index_to_name.json", '{"0": "red fox", "1": "Great Dane, big", "2": "koala"}'),
        ("index_to_name.json", '{"2": "koala", "1": "Great Dane, big", "0": "red fox"}'),
        (
            "index_to_name.json",
            '{"0": ["n02119022", "red fox"], "1": ["n02109047", "Great Dane, big"], "2": ["n01882714", "koala"]}',
        ),
        ("class_to_idx.json", '{"koala": 2, "red fox": 0, "Great Dane, big": 1}'),
        (
            "config.json",
            '{"architectures": ["X"], "id2label": {"0": "red fox", "1": "Great Dane, big", "2": "koala"}, '
            '"label2id": {"red fox": 0, "Great Dane, big": 1, "koala": 2}}',
        ),
        ("data.yaml", "train: images/\nnc: 3\nnames: [red fox, 'Great Dane, big', koala]\n"),
        ("data.yml", "names:\n  0: red fox\n  1: Great Dane, big\n  2: koala\n"),
        ("data.yaml", "- red fox\n- Great Dane, big\n- koala\n"),
        ("data.yaml", "0: red fox\n1: Great Dane, big\n2: koala\n"),
    ],
)
def test_a_labels_file_may_be_lines_json_yaml_or_csv(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8")
    assert read_labels(str(tmp_path / file)) == ("red fox", "Great Dane, big", "koala")


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("l.txt", "", "label 0|empty"),
        ("l.txt", "a\n\nb", "label 1 is ''"),
        ("l.json", '"a"', "holds a str; it should hold a list of strings or an object"),
        ("l.json", "{}", "holds a dict"),
        ("l.json", '{"0": "a", "2": "b", "4": "c"}', r"indices 0\.\.4; they should be 0\.\.2 .* none for 1$"),
        ("l.json", '{"1": "a", "2": "b"}', "none for 0; they seem to start at 1"),
        ("l.json", '{"0": "a", "0": "b"}', "the key '0' comes 2 times"),
        ("l.json", '{"0": "a", "00": "b"}', "several labels for the indices 0"),
        ("l.json", '{"0": "a", "b": "c"}', "the key 'b'; an object of labels goes from indices"),
        ("l.json", '{"a": 0, "b": 0}', "several labels for the indices 0"),
        ("l.json", '{"a": 0, "b": 2}', "none for 1"),
        ("l.json", '{"-1": "a", "0": "b"}', "the key '-1'"),
        ("l.json", '{"0": ["cat", "dog"]}', "label 0 is .'cat', 'dog'."),
        ("l.json", '{"id2label": {"0": "a", "3": "b"}}', "none for 1"),
        ("l.json", "[" * 100_000, "not valid JSON"),
        ("l.yaml", "names: [yes, no]", "label 0 is True.*quotation marks"),
        ("l.yaml", "names: [1, 2]", "label 0 is 1.*quotation marks"),
        ("l.yaml", "nc: 3\nnames: [a, b]", "nc: 3, but holds 2 names"),
        ("l.yaml", "names: {0: a, 0: b}", "the key '0' comes 2 times"),
        ("l.yaml", "names: !!python/object/apply:os.system ['true']", "not valid YAML.*python/object"),
        ("l.yaml", "names: [", "not valid YAML"),
        ("l.yaml", "train: x", "the key 'train'"),
        ("l.yaml", "", "holds a NoneType"),
        ("l.json", "[1, 2]", "label 0 is 1"),
        ("l.json", '["a\\nSet-Cookie: b"]', "label 0"),
        ("l.json", "[", "not valid JSON"),
        ("l.csv", "a,b\nc,d", "one row or one column"),
        ("l.csv", "0,a\n2,b", "none for 1"),
        ("l.csv", "0,a\n0,b", "several labels for the indices 0"),
        ("l.csv", "0,a,x\n1,b,y", "one row or one column"),
        ("l.csv", "", "is empty"),
    ],
)
def test_a_file_that_holds_no_labels_is_refused(tmp_path: Path, file: str, text: str, told: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(ModelError, match=told):
        read_labels(str(tmp_path / file))


def test_a_missing_labels_file_is_named() -> None:
    with pytest.raises(ModelError, match=r"labels file nowhere\.txt"):
        read_labels("nowhere.txt")
