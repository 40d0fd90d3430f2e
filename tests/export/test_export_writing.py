"""What stands in a graph, what is refused, and what lies on the disk after a failure."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
import small_lecture_network
import torch
from torch import Tensor, nn

import convlens
import export as export_package
from convlens.errors import ConvLensError, ModelError, RequestError, UnsupportedModelError
from convlens.models import Classifier, load
from convlens.runtime.graph_contract import labels_sha256
from export import compatibility
from export.__main__ import _parser, main
from export.bundle import ALONE
from export.compatibility import Row, markdown
from export.exporter import OnStep, export
from export.verification import relative

NETWORK = f"file:{small_lecture_network.__file__}:make?size=64&resize=64"


class Liar(nn.Module):
    """Says something else while it is exported: what a wrong translation would look like."""

    def __init__(self, off: float) -> None:
        super().__init__()
        self.first, self.head, self.off = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), off

    def forward(self, x_NCHW: Tensor) -> Tensor:
        logits_NK = self.head(self.first(x_NCHW).mean((2, 3)))
        return logits_NK * (1 + self.off) if torch.compiler.is_exporting() else logits_NK


class Chancy(nn.Module):
    """Decides by its input's values, which no graph of torch's exporter can."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        features = self.first(x_NCHW).mean((2, 3))
        return self.head(features if features.sum() > 0 else -features)


def small(module: nn.Module | None = None) -> Classifier:
    torch.manual_seed(0)
    return nets.classifier(module or nets.Sequential(nn.Conv2d(4, 4, 3)), classes=3)


def test_the_contract_in_the_file_says_what_the_graph_is(tmp_path: Path) -> None:
    net = load(NETWORK, device="cpu")
    report = export(net, "scores", tmp_path / "scores.onnx")
    written = {entry.key: entry.value for entry in onnx.load(report.path).metadata_props}
    contract = json.loads(written["convlens.contract"])
    assert written["convlens.format"] == "1"
    assert contract["kind"] == "scores"
    assert contract["model"] == net.spec.name
    assert contract["weights_sha256"] == net.spec.weights_sha256
    assert contract["labels_sha256"] == labels_sha256(net.spec.labels)
    assert contract["mean"] == list(net.spec.mean)
    assert contract["inputs"] == [{"name": "x_NCHW", "shape": ["N", 3, 64, 64], "dtype": "float32"}]
    assert contract["outputs"] == [{"name": "logits_NK", "shape": ["N", 10], "dtype": "float32"}]
    assert contract["tolerance"] == 1e-4
    assert contract["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert contract["versions"]["convlens"] == convlens.__version__


@pytest.mark.parametrize("kind", ["scores", "occlusion"])
def test_nothing_of_this_machine_stands_in_the_file(tmp_path: Path, kind: Any) -> None:
    # torch's exporter notes stack traces, with folders, on every node
    path = export(small(), kind, tmp_path / "graph.onnx", window=4, stride=2).path
    content = path.read_bytes()
    for folder in (Path(torch.__file__).parent.parent, Path(convlens.__file__).parent.parent, Path(__file__).parent):
        assert str(folder).encode() not in content
    assert b"stack_trace" not in content


def test_labels_are_told_apart_from_their_concatenation() -> None:
    assert labels_sha256(["ab", "c"]) != labels_sha256(["a", "bc"])


def test_a_graph_that_disagrees_stays_a_draft_and_says_by_how_much(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(b"what was there before")
    with pytest.raises(ModelError, match=r"logits_NK off by 1\.00e-02 at batch 1.*graph\.draft\.onnx"):
        export(small(Liar(0.01)), "scores", path)
    assert path.read_bytes() == b"what was there before"
    onnx.checker.check_model(onnx.load(tmp_path / "graph.draft.onnx"))


def test_the_tolerance_decides_what_disagrees(tmp_path: Path) -> None:
    report = export(small(Liar(0.01)), "scores", tmp_path / "graph.onnx", tolerance=0.02)
    assert report.worst.relative == pytest.approx(0.01, rel=1e-3)
    assert report.contract.tolerance == 0.02
    assert sorted(file.name for file in tmp_path.iterdir()) == ["graph.onnx"]


def test_a_graph_is_compared_at_batch_sizes_that_were_not_traced(tmp_path: Path) -> None:
    report = export(small(), "embedding", tmp_path / "graph.onnx")
    assert {(one.output, one.batch) for one in report.deviations} == {
        (output, count) for output in ("embedding_ND", "logits_NK") for count in (1, 3, 8)
    }


def test_the_relative_difference_is_of_the_largest_value() -> None:
    assert relative(np.array([1.0, -4.0]), np.array([1.2, -4.0])) == pytest.approx(0.05)
    assert relative(np.zeros(2), np.array([0.0, 0.5])) == 0.5
    assert relative(np.ones(2), np.array([1.0, np.nan])) == float("inf")
    with pytest.raises(ModelError, match="NaN"):
        relative(np.array([np.nan]), np.ones(1))


def test_a_network_that_the_exporter_cannot_follow_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"torch cannot export this network: .+"):
        export(small(Chancy()), "scores", tmp_path / "graph.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    path.write_bytes(b"what was there before")
    (tmp_path / "graph.draft.onnx").symlink_to("/dev/full")  # the kernel's own full disk
    with pytest.raises(ConvLensError, match=r"cannot be written: No space left on device; choose another folder"):
        export(small(), "scores", path)
    assert path.read_bytes() == b"what was there before"
    assert [file.name for file in tmp_path.iterdir()] == ["graph.onnx"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"kind": "score"},
            "no graph 'score'; there are: scores, features, embedding, occlusion, "
            "saliency, guided_backprop, deconvnet, cam; did you mean scores",
        ),
        ({"kind": "features"}, "needs the names of one or more layers"),
        ({"kind": "features", "layers": ["frist"]}, "no layer 'frist'; did you mean first"),
        ({"kind": "features", "layers": ["first", "first"]}, "named twice"),
        ({"layers": ["first"]}, "takes no layers"),
        ({"opset": 17}, r"opset=17 cannot be written; use 18\.\.23"),
        ({"opset": 24}, r"opset=24 cannot be written; use 18\.\.23"),
        ({"batch": 0}, "batch=0"),
        ({"tolerance": 0.0}, "tolerance=0"),
        ({"input_size": 0}, "input_size=0"),
        ({"input_size": 2}, "the network fails on pictures of 2×2"),
        ({"kind": "occlusion", "window": 4, "stride": 5}, "stride=5 with window=4 would skip pixels"),
        ({"path": "graph.pb"}, "should end in .onnx"),
        ({"path": "graph.draft.onnx"}, "is for drafts"),
        ({"path": "nowhere/graph.onnx"}, "there is no folder"),
        ({"path": "folder.onnx"}, "is a folder"),
    ],
)
def test_what_cannot_be_honoured_is_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    (tmp_path / "folder.onnx").mkdir()
    given = {"kind": "scores", "path": "graph.onnx"} | options
    with pytest.raises(RequestError, match=said):
        export(small(), given.pop("kind"), tmp_path / given.pop("path"), **given)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.onnx"]


def test_a_layer_that_never_runs_is_refused(tmp_path: Path) -> None:
    net = nets.Sequential(nn.Conv2d(4, 4, 3))
    net.idle = nn.Identity()
    with pytest.raises(RequestError, match="'idle' exists but did not run"):
        export(small(net), "features", tmp_path / "graph.onnx", layers=["idle"])
    assert list(tmp_path.iterdir()) == []


def test_a_model_in_training_mode_is_refused(tmp_path: Path) -> None:
    net = small()
    net.module.train()
    with pytest.raises(ModelError, match="training mode"):
        export(net, "scores", tmp_path / "graph.onnx")


def test_the_users_model_is_as_it_was(tmp_path: Path) -> None:
    net = small()
    before = {name: tensor.clone() for name, tensor in net.module.state_dict().items()}
    export(net, "features", tmp_path / "graph.onnx", layers=["first"], half=True)
    export(net, "embedding", tmp_path / "graph.onnx")
    for name, tensor in net.module.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.module.modules())
    assert not any(part.training for part in net.module.modules())


def test_the_command_writes_a_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "graph.onnx"
    assert main(["occlusion", "--model", NETWORK, "--stride", "32", "-o", str(path)]) == 0
    assert path.is_file()
    assert "agrees with torch within" in capsys.readouterr().out


def test_the_steps_of_an_export_are_reported(tmp_path: Path) -> None:
    steps: list[str] = []
    export(small(), "scores", tmp_path / "graph.onnx", on_step=lambda step: steps.append(step.stage))
    assert steps == ["tracing", "comparing with torch at batch 1, 3, 8", "written"]


def test_a_failed_export_is_not_reported_as_written(tmp_path: Path) -> None:
    steps: list[str] = []
    with pytest.raises(ModelError):
        export(small(Liar(0.01)), "scores", tmp_path / "graph.onnx", on_step=lambda step: steps.append(step.stage))
    assert steps[-1] == "comparing with torch at batch 1, 3, 8"


def test_the_command_shows_its_steps_on_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scores", "--model", NETWORK, "--static-batch", "--batch", "2", "-o", str(tmp_path / "s.onnx")]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ["tracing", "comparing with torch at batch 2", "written"]
    assert len(captured.out.splitlines()) == 1


def test_results_are_written_after_the_steps_have_been_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A live display takes standard output over while it is open, and would send results where it draws."""

    @contextlib.contextmanager
    def watched(description: str) -> Iterator[OnStep]:
        assert description == f"loading {NETWORK}"
        yield lambda step: shown.append(step.stage)
        assert capsys.readouterr().out == ""

    shown: list[str] = []
    assert main(["scores", "--model", NETWORK, "-o", str(tmp_path / "s.onnx")], show_steps=watched) == 0
    assert shown[-1] == "written"
    assert "agrees with torch within" in capsys.readouterr().out


def test_the_help_names_both_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: convlens export")
    assert "`python -m export` is the same command" in text


def test_the_package_gives_export_and_loads_torch_only_then() -> None:
    code = (
        "import sys, export\n"
        "assert not {'torch', 'onnx', 'convlens'} & set(sys.modules)\n"
        "from export import ExportReport, export as function\n"
        "import export.exporter\n"
        "assert function is export.exporter.export and 'export' in dir(export)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'exports'"):
        getattr(export_package, "exports")  # noqa: B009 - the name is a mistake on purpose


def test_the_command_says_an_error_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scores", "--model", NETWORK, "--opset", "9", "-o", str(tmp_path / "graph.onnx")]) == 2
    assert capsys.readouterr().err == "error: opset=9 cannot be written; use 18..23\n"


def test_the_table_has_a_line_a_model_and_a_column_a_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = tmp_path / "rows.json"
    assert main(["table", "--models", NETWORK, "--kinds", "scores", "features", "-o", str(where)]) == 0
    rows = json.loads(where.read_text())
    assert [row["kind"] for row in rows] == ["scores", "features"]
    assert all(0 < row["worst"] < 1e-4 for row in rows)
    head, _, line = capsys.readouterr().out.strip().splitlines()[-3:]
    assert head == "| model | scores | features |"
    assert line == f"| {rows[0]['model']} | {rows[0]['worst']:.1e} | {rows[1]['worst']:.1e} |"


def test_an_interrupted_table_keeps_the_rows_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the third graph is made."""
    where, made = (
        tmp_path / "rows.json",
        iter([Row("net", "scores", 1e-6, 1.0), Row("net", "saliency", None, 0.0, "why")]),
    )

    def graph(_: Classifier, kind: str) -> Row:
        for row in made:
            return row
        raise KeyboardInterrupt

    monkeypatch.setattr(compatibility, "_row", graph)
    with pytest.raises(KeyboardInterrupt):
        main(["table", "--models", NETWORK, "--kinds", "scores", "saliency", "features", "-o", str(where)])
    assert [(row["kind"], row["error"]) for row in json.loads(where.read_text())] == [
        ("scores", ""),
        ("saliency", "why"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


def test_what_does_not_export_is_a_row_of_the_table_and_not_the_end_of_it() -> None:
    found = [Row("good", "scores", 1e-6, 1.0), Row("bad", "scores", None, 0.0, "why")]
    assert markdown(found).splitlines()[2:] == ["| good | 1.0e-06 |", "| bad | failed |"]


@pytest.mark.parametrize(
    "spelling", [["--layers", "stages.0", "conv_stem"], ["--layers", "stages.0", "--layers", "conv_stem"]]
)
def test_a_repeated_option_adds_up(spelling: list[str]) -> None:
    options = _parser().parse_args(["features", "-o", "graph.onnx", *spelling])
    assert options.layers == ["stages.0", "conv_stem"]


@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        ([], ALONE),
        (["--kinds", "embedding"], ["embedding"]),
        (["--kinds", "embedding", "--kinds", "saliency"], ["embedding", "saliency"]),
    ],
)
def test_repeated_kinds_add_up_in_place_of_the_default(given: list[str], kinds: Sequence[str]) -> None:
    assert _parser().parse_args(["bundle", "-o", "folder", *given]).kinds == kinds
