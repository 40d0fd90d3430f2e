"""A TorchServe handler as one writes it straight away: a picture in, captum called method by method, JSON out.

The same network, picture pipeline, gallery and encoding of arrays as ConvLens has; everything else is captum's and
TorchServe's own. One request after another, each with all methods it names: ``{"methods": […], "windows": n}``, where
``windows`` is how many of them captum's occlusion scores at a time. Served by ``benchmarks/serving.py``.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import faiss
import numpy as np
import torch
from captum.attr import GuidedBackprop, Occlusion, Saliency

from convlens import image
from convlens.gallery import Gallery
from convlens.models import unpack


class CaptumHandler:
    """Attributions for the predicted class of one picture, predictions, and neighbours by faiss."""

    def initialize(self, context):
        folder = Path(context.system_properties["model_dir"])
        classifier = unpack(folder / "model", device="cpu")
        self.model, self.spec = classifier.module, classifier.spec
        self.entries = Gallery.open(folder / "gallery").entries
        (vectors,) = folder.glob("gallery/**/vectors.npy")
        vectors_ND = np.load(vectors)
        self.index = faiss.IndexFlatL2(vectors_ND.shape[1])
        self.index.add(vectors_ND)
        layer = dict(self.model.named_modules())[self.spec.embedding_layer]
        layer.register_forward_pre_hook(self._keep_embedding)
        self.saliency = Saliency(self.model)
        self.guided_backprop = GuidedBackprop(self.model)
        self.occlusion = Occlusion(self.model)
        self.initialized = True

    def handle(self, data, context):
        return [self._answer(item) for item in data]

    def _answer(self, item):
        asked = json.loads(item["params"])
        picture = image.decode(item["data"])
        x = torch.from_numpy(image.prepare(picture, self.spec).x_CHW)[None]
        with torch.no_grad():
            probability = self.model(x).softmax(1)[0]
        best = probability.topk(5)
        target = int(best.indices[0])
        answer = {
            "predictions": [
                {"index": k, "label": self.spec.labels[k], "probability": p}
                for p, k in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
        }
        if "neighbours" in asked["methods"]:
            answer["neighbours"] = self._neighbours(self.embedding)
        if "saliency" in asked["methods"]:
            answer["saliency"] = _array(self.saliency.attribute(x, target=target, abs=False))
        if "guided_backprop" in asked["methods"]:
            answer["guided_backprop"] = _array(self.guided_backprop.attribute(x, target=target))
        if "occlusion" in asked["methods"]:
            with torch.no_grad():
                lost = self.occlusion.attribute(
                    x, (3, 32, 32), strides=(3, 16, 16), target=target, perturbations_per_eval=asked["windows"]
                )
            answer["occlusion"] = _array(lost[:, :1])  # a window hides all channels: all three are the same
        return json.dumps(answer)

    def _keep_embedding(self, layer, given):
        self.embedding = given[0].detach()

    def _neighbours(self, embedding, k=5):
        unit = torch.nn.functional.normalize(embedding.flatten(2).mean(2) if embedding.ndim > 2 else embedding)
        squared, rows = self.index.search(unit.numpy(), k)
        return [
            {"id": self.entries[row].id, "label": self.entries[row].label, "distance": float(distance) ** 0.5}
            for distance, row in zip(squared[0], rows[0].tolist(), strict=True)
        ]


def _array(x):
    values = x[0].detach().numpy().astype("<f4")
    data = base64.b64encode(np.ascontiguousarray(values)).decode()
    return {"dtype": "<f4", "shape": list(values.shape), "encoding": "base64", "data": data}
