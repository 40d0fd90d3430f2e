"""Deconvnet: the score projected back to the image through rectified layers."""

from __future__ import annotations

import time

import torch

from convlens.errors import UnsupportedModelError
from convlens.explain.forward import Forward
from convlens.explain.registry import explainer
from convlens.instrument import RuledRelus, remembers_places, require_relu_network
from convlens.models import Classifier
from convlens.types import Attribution, Ints

LATTICE = "this network has no max pooling, without which the map is the same lattice for every image"


@explainer(
    "deconvnet",
    title="Deconvnet",
    needs="gradient",
    drawing="gradient",
    shows="what pattern, projected back through the layers, stands for the score.",
    does_not_show="which units this image switched on: only max pooling remembers; without it all maps look alike.",
    caution="such maps hardly change when the network's top layers get random weights: they say little about the class "
    "(Nie et al. 2018, arXiv:1805.07039)",
)
def deconvnet(forward: Forward, target_N: Ints) -> Attribution:
    """max(g, 0) at every ReLU on the way back from the target's logit (Zeiler & Fergus 2014, arXiv:1311.2901).

    Values (N, C, H, W) are signed, in units of logit per normalised pixel. Raises UnsupportedModelError for
    networks with other activations than ReLU. A warning says where the map would be the same for every image.
    """
    # The rule ignores which ReLUs were on. Only max pooling remembers anything of the image: without it, on
    # EfficientNet-Lite0, the maps of a cat, a dog, a koala and an elephant correlate by .999.
    started = time.perf_counter()
    grad = forward.gradient("deconvnet", target_N, method="deconvnet")
    warnings = () if forward.remembers_places else (LATTICE,)
    meta = forward.meta("logit", started=started, ruled=True, warnings=warnings)
    return forward.attribution("deconvnet", grad, target_N, {}, meta)


def depends_on_image(classifier: Classifier) -> bool:
    """Whether this network's deconvnet maps differ from image to image: where it pools by a maximum.

    True where deconvnet refuses the network as well: its error gives the reason then.
    """
    spec = classifier.spec
    x_NCHW = torch.zeros(1, spec.channels, *spec.input_size, device=classifier.device, requires_grad=True)
    with torch.enable_grad(), RuledRelus():
        output = classifier.module(x_NCHW)
    try:
        require_relu_network(output, method="deconvnet")
    except UnsupportedModelError:
        return True
    return remembers_places(output)
