"""Grad-CAM, by captum: the last feature maps, weighted by the gradients of the score."""

from __future__ import annotations

import time

import torch

from convlens.errors import RequestError
from convlens.explain.registry import explainer
from convlens.explain.torch_forward import ForwardPass
from convlens.instrument import find_layer, private_tree, tapped
from convlens.types import Attribution, Ints


@explainer(
    "grad_cam",
    title="Grad-CAM",
    needs="model",
    drawing="signed",
    shows="the coarse regions whose features in the last spatial layer speak for the class.",
    does_not_show="detail: its raw map has only a few cells a side and is stretched over the image.",
)
def grad_cam(forward: ForwardPass, target_N: Ints, *, layer: str = "", relu: bool = True) -> Attribution:
    """Feature maps of ``layer`` weighted by their mean gradients, summed (Selvaraju et al. 2017, arXiv:1610.02391).

    Values (N, 1, H, W) are stretched bilinearly to the input's size; ``extras["map_NCHW"]`` is the raw map. ``layer``
    defaults to the spec's ``gradcam_layer``; RequestError for one that does not exist, does not run or has no
    map. ``relu=False`` keeps the evidence against the class as well.
    """
    from captum.attr import LayerAttribution, LayerGradCam  # on first use: it is slow to import and brings matplotlib

    started = time.perf_counter()
    name = layer or forward.spec.gradcam_layer
    if layer:  # the default one was checked when the model was loaded
        _require_map(forward, layer)
    # captum hooks the layer, so it gets a tree of its own: other threads that use this model never see the hooks.
    tree = private_tree(forward.classifier.module)
    x_NCHW = forward.x_NCHW.clone().requires_grad_()
    cam = LayerGradCam(tree, find_layer(tree, name)).attribute(x_NCHW, target=target_N.tolist(), relu_attributions=relu)
    stretched = LayerAttribution.interpolate(cam, tuple(x_NCHW.shape[-2:]), interpolate_mode="bilinear")
    meta = forward.meta("logit", started=started, runtime="torch+captum", layer=name)
    extras = {"map_NCHW": cam.detach().cpu().numpy()}
    return forward.attribution("grad_cam", stretched, target_N, {"layer": name, "relu": relu}, meta, extras)


def _require_map(forward: ForwardPass, layer: str) -> None:
    try:
        with torch.no_grad(), tapped(forward.classifier.module, outputs=[layer]) as tap:
            tap.module(forward.x_NCHW[:1])
    except RequestError as error:
        error.field = f"options.{error.field}"  # here the layer is an option of the method
        raise
    shape = tuple(tap.outputs[layer].shape)
    if len(shape) != 4:
        raise RequestError(
            f"layer {layer!r} has no map: it gives {shape}, and Grad-CAM needs (N, C, H, W); choose an earlier one",
            field="options.layer",
        )
