"""The neighbours explainer from picture to answer, against brute force over the forward pass's embeddings."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from nets import classifier
from PIL import Image
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from convlens.errors import GalleryError, RequestError
from convlens.explain import ForwardPass, run
from convlens.gallery import Gallery, build_from
from convlens.image import prepare
from convlens.types import Neighbourhood


class Small(nn.Module):
    """Two random layers, and a map before the head, so that the embedding is a mean over space."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 16, 3)
            self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(torch.relu(self.first(x_NCHW))).mean((2, 3))


PICTURES = [Image.fromarray(p) for p in np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)]


@pytest.fixture(scope="module")
def net():
    return classifier(Small(), classes=4)


@pytest.fixture(scope="module", params=["unit", "raw"])
def gallery(request, net, tmp_path_factory) -> Gallery:
    named = [(f"p{n}", f"label {n}", picture) for n, picture in enumerate(PICTURES[:24])]
    folder = tmp_path_factory.mktemp("gallery")
    return build_from(named, folder, net, feature_space=request.param, thumbnail_side=8, batch=5).gallery


def batch(net, pictures) -> np.ndarray:
    return np.stack([prepare(picture, net.spec).x_CHW for picture in pictures])


def by_hand(net, pictures) -> np.ndarray:
    """The embedding without any of our code: the mean over space of the ReLU's output, in float64."""
    first = copy.deepcopy(net.module.first).double()
    with torch.no_grad():
        return torch.relu(first(torch.tensor(batch(net, pictures)).double())).mean((2, 3)).numpy()


def test_the_order_and_the_distances_are_those_of_brute_force_over_the_embeddings(net, gallery):
    answer = run("neighbours", ForwardPass(net, batch(net, PICTURES[20:]), gallery=gallery), None, {"k": 8})
    query, vectors = by_hand(net, PICTURES[20:]), by_hand(net, PICTURES[:24])
    if gallery.feature_space == "unit":
        query, vectors = (x / np.linalg.norm(x, axis=1)[:, None] for x in (query, vectors))
    distance = cdist(query, vectors)
    assert isinstance(answer, Neighbourhood)
    expected = np.argsort(distance, axis=1)[:, :8]
    assert [[n.id for n in row] for row in answer.neighbours_NM] == [[f"p{n}" for n in row] for row in expected]
    measured = [[n.distance for n in row] for row in answer.neighbours_NM]
    # the network runs in float32: embeddings below 1 are off by about 1e-7
    np.testing.assert_allclose(measured, np.take_along_axis(distance, expected, axis=1), atol=2e-6)


def test_an_image_of_the_gallery_is_its_own_nearest_with_its_label_and_thumbnail(net, gallery):
    answer = run("neighbours", ForwardPass(net, batch(net, PICTURES[5:6]), gallery=gallery), None, {"k": 1})
    ((nearest,),) = answer.neighbours_NM
    assert (nearest.id, nearest.label) == ("p5", "label 5")
    assert nearest.distance < 2e-6  # another batch size may round the last bits otherwise
    assert nearest.thumbnail.startswith(b"\xff\xd8")


def test_a_row_of_a_batch_is_answered_as_if_it_were_alone(net, gallery):
    together = run("neighbours", ForwardPass(net, batch(net, PICTURES), gallery=gallery))
    for n in (0, 13, 29):
        alone = run("neighbours", ForwardPass(net, batch(net, PICTURES[n : n + 1]), gallery=gallery))
        (row,), (expected,) = together.row(n).neighbours_NM, alone.neighbours_NM
        assert [x.id for x in row] == [x.id for x in expected]
        np.testing.assert_allclose([x.distance for x in row], [x.distance for x in expected], atol=2e-6)


def test_selected_rows_keep_their_neighbours(net, gallery):
    forward = ForwardPass(net, batch(net, PICTURES[:10]), gallery=gallery)
    whole, part = run("neighbours", forward), run("neighbours", forward.select([7, 2]))
    assert part.neighbours_NM == (whole.neighbours_NM[7], whole.neighbours_NM[2])


def test_the_answer_says_how_it_came_about(net, gallery):
    answer = run("neighbours", ForwardPass(net, batch(net, PICTURES[:2]), gallery=gallery))
    assert (answer.method, dict(answer.options)) == ("neighbours", {"k": 5})
    assert answer.meta.weights_sha256 == net.spec.weights_sha256
    assert (answer.meta.forwards, answer.meta.backwards) == (1, 0)


def test_without_a_gallery_the_error_says_how_to_make_one(net):
    with pytest.raises(GalleryError, match="convlens gallery build"):
        run("neighbours", ForwardPass(net, batch(net, PICTURES[:1])))


def test_a_gallery_of_other_weights_is_refused(net, gallery):
    other = replace(net, spec=replace(net.spec, weights_sha256="f" * 64))
    with pytest.raises(GalleryError, match=r"000000000000, but .* ffffffffffff"):
        run("neighbours", ForwardPass(other, batch(net, PICTURES[:1]), gallery=gallery))


def test_more_neighbours_than_images_are_refused_with_the_size_of_the_gallery(net, gallery):
    with pytest.raises(RequestError, match=r"use 1\.\.24") as error:
        run("neighbours", ForwardPass(net, batch(net, PICTURES[:1]), gallery=gallery), None, {"k": 25})
    assert error.value.field == "options.k"
