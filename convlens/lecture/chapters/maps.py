"""All images on a plane, by their features: PCA and t-SNE."""

from __future__ import annotations

from collections.abc import Iterator

from convlens.lecture.base import RESULTS, Command, Drawn, Figure, Lecture, chapter
from convlens.lecture.outputs import read_image, read_json

_TEXTS = {
    "pca": (
        "Features by PCA",
        "Every image at the first two principal components of its features: the directions in which they vary most. "
        "What lies far apart here is different in the features too.",
        "Two directions hold a small share of the variance: images that lie together may be far apart in all others.",
    ),
    "tsne": (
        "Features by t-SNE",
        "Every image near those that its features are nearest to. Images of one kind gather in groups.",
        "Distances between groups, the sizes of groups and the axes mean nothing. Neighbours on the map need not be "
        "nearest in the features: the share below says how many are.",
    ),
}


@chapter("maps", title="Maps of the features", place=3)
def figures(lecture: Lecture) -> Iterator[Figure]:
    """Both maps."""
    for method, (title, shows, does_not_show) in _TEXTS.items():
        yield _figure(lecture, method, title, shows, does_not_show)


def _figure(lecture: Lecture, method: str, title: str, shows: str, does_not_show: str) -> Figure:
    folder = f"{RESULTS}/{method}"

    def draw() -> Drawn:
        manifest = read_json(lecture.path(f"{folder}/manifest.json"))
        facts = [
            ("Of each image's 5 nearest on the map, among its 5 nearest in the features", f"{manifest['shared']:.1%}"),
            ("Trustworthiness, which weighs the others by their rank", f"{manifest['trustworthiness']:.3f}"),
        ]
        if manifest["agreement_of_map"] is not None:
            features, on_map = manifest["agreement_of_features"], manifest["agreement_of_map"]
            facts.append(("Neighbours of one label", f"{features:.1%} in the features, {on_map:.1%} on the map"))
        if method == "pca":
            shares = " + ".join(f"{share:.1%}" for share in manifest["explained"])
            facts.append(("Share of the variance along the axes", shares))
        pages = [("The map to zoom into", f"{folder}/map.html")]
        return Drawn(read_image(lecture.path(f"{folder}/map.png")), manifest, facts, pages)

    project = Command.of("project", lecture.gallery.output, "--method", method, "-o", folder)
    return Figure(
        name=method,
        title=title,
        shows=shows,
        does_not_show=lecture.caution(does_not_show),
        commands=(lecture.gallery, project),
        draw=draw,
        photograph=True,
    )
