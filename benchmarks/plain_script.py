"""One library in a process of its own, as in anybody's script: no environment variable, torch's own allocator.

Reads lines of JSON from standard input (what to compute, and how many at a time) and answers each with a line when the
result lies in a file. Started by other benchmarks, which take the time.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from other_process import OtherProcess

WINDOW, STRIDE, SAMPLES = 32, 16, 4
Sides = dict[str, Callable[[int], Any]]


class PlainScript:
    """The other process, seen from the benchmark; close it. ``library`` is captum, convlens or accelerated.

    Its images are as many as ``targets``: scikit-image's cat first, then the same changed.
    """

    def __init__(self, library: str, model: str, *, targets: Sequence[int], device: str = "cpu") -> None:
        kept = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
        given = {"library": library, "model": model, "device": device, "targets": list(targets)}
        self._folder = tempfile.TemporaryDirectory()
        self._process = OtherProcess(__file__, json.dumps(given | {"out": f"{self._folder.name}/found.npy"}), env=kept)

    def compute(self, what: str, at_once: int = 0) -> Any:
        """The result as an array; ``at_once`` is the size of captum's chunks, 0 for its default."""
        import numpy as np

        return np.load(self._process.ask(json.dumps([what, at_once])))

    def close(self) -> None:
        self._process.close()
        self._folder.cleanup()


def captums(classifier: Any, x_NCHW: Any, target_N: list[int]) -> Sides:
    """As captum's documentation calls them, on one tensor of images."""
    import torch
    from captum import attr

    module = classifier.module

    def sweep(chunk: int) -> Any:
        with torch.no_grad():
            return attr.Occlusion(module).attribute(
                x_NCHW[:1], (3, WINDOW, WINDOW), strides=(3, STRIDE, STRIDE), target=target_N[0],
                perturbations_per_eval=chunk,
            )[:, 0]  # fmt: skip

    def x() -> Any:
        return x_NCHW.clone().requires_grad_()

    def rules(_: int) -> Any:
        saliency = attr.Saliency(module).attribute(x(), target=target_N, abs=False)
        ruled = [rule(module).attribute(x(), target=target_N) for rule in (attr.GuidedBackprop, attr.Deconvolution)]
        return torch.stack([saliency, *ruled]).detach()

    def grad_cam(_: int) -> Any:
        layer = module.get_submodule(classifier.spec.gradcam_layer)
        cam = attr.LayerGradCam(module, layer).attribute(x_NCHW, target=target_N, relu_attributions=True)
        return attr.LayerAttribution.interpolate(cam, tuple(x_NCHW.shape[2:]), interpolate_mode="bilinear").detach()

    def smoothgrad(at_once: int) -> Any:
        return attr.NoiseTunnel(attr.Saliency(module)).attribute(
            x(), nt_type="smoothgrad", nt_samples=SAMPLES, nt_samples_batch_size=at_once or None, stdevs=0.3,
            target=target_N, abs=False,
        ).detach()  # fmt: skip

    def integrated(at_once: int) -> Any:
        return attr.IntegratedGradients(module).attribute(
            x(), target=target_N, n_steps=SAMPLES, internal_batch_size=at_once or None
        ).detach()  # fmt: skip

    return {
        "occlusion": sweep, "three rules": rules, "grad_cam": grad_cam, "smoothgrad": smoothgrad,
        "integrated_gradients": integrated,
    }  # fmt: skip


def ours(classifier: Any, x_NCHW: Any, target_N: list[int]) -> Sides:
    import convlens

    def explained(method: str, options: dict[str, Any], images: Any = x_NCHW) -> Any:
        targets = target_N[: len(images)]
        return convlens.run(method, convlens.ForwardPass(classifier, images), targets, options).values_NCHW

    def in_half() -> Any:
        """It must not have run in float32."""
        options = {"window": WINDOW, "stride": STRIDE, "precision": "half"}
        result = convlens.run("occlusion", convlens.ForwardPass(classifier, x_NCHW[:1]), target_N[:1], options)
        assert result.meta.precision == "half", result.meta.warnings
        return result.values_NCHW

    def rules(_: int) -> Any:
        import numpy as np

        forward = convlens.ForwardPass(classifier, x_NCHW)
        names = ("saliency", "guided_backprop", "deconvnet")
        return np.stack([convlens.run(name, forward, target_N).values_NCHW for name in names])

    return {
        "occlusion": lambda _: explained("occlusion", {"window": WINDOW, "stride": STRIDE}, x_NCHW[:1])[:, 0],
        "occlusion in half": lambda _: in_half()[:, 0],
        "three rules": rules,
        "grad_cam": lambda _: explained("grad_cam", {}),
        "smoothgrad": lambda _: explained("smoothgrad", {"samples": SAMPLES}),
        "integrated_gradients": lambda _: explained("integrated_gradients", {"steps": SAMPLES}),
    }


def photographs(spec: Any, count: int) -> Any:
    """(N, C, H, W): scikit-image's cat, and the same mirrored, turned and shifted."""
    import numpy as np
    import skimage.data
    import torch
    from PIL import Image

    from convlens import image

    x_CHW = image.prepare(Image.fromarray(skimage.data.chelsea()), spec).x_CHW
    return torch.as_tensor(np.stack([np.roll(np.rot90(x_CHW, n, (1, 2)), 8 * n, 2) for n in range(count)]))


def main() -> None:
    import numpy as np

    import convlens

    warnings.simplefilter("ignore")
    given = json.loads(sys.argv[1])
    classifier = convlens.load(given["model"], device=given["device"])
    if given["library"] == "accelerated":
        classifier = convlens.accelerate(classifier)
    x_NCHW = photographs(classifier.spec, len(given["targets"])).to(classifier.device)
    sides = (captums if given["library"] == "captum" else ours)(classifier, x_NCHW, given["targets"])
    print("ready", flush=True)
    for line in sys.stdin:
        what, at_once = json.loads(line)
        found = sides[what](at_once)
        np.save(given["out"], found if isinstance(found, np.ndarray) else found.cpu().numpy())
        print(given["out"], flush=True)


if __name__ == "__main__":
    main()
