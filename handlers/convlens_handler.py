"""TorchServe's entry point for archives that carry a network: it loads what is in them, ``Worker`` does the rest."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from convlens.engine.backend import graphs_beside
from convlens.engine.engine import Engine
from convlens.gallery import Gallery
from convlens.models import unpack
from convlens.runtime.torch_runtime import keep_freed_memory
from convlens.serving import structured_logging
from convlens.serving.handler import Worker, engine_options, given_gpu, section

_log = logging.getLogger(__name__)


class ConvLensHandler(Worker):
    """One worker's model. TorchServe finds the only class here, calls initialize once, then handle for each batch."""

    def initialize(self, context: Any) -> None:
        """Load the archive's model, graphs and gallery; what it raises makes the worker fail to start."""
        structured_logging.setup()
        config, gpu = section(context), given_gpu(context)
        folder = Path(context.system_properties["model_dir"])
        keep_freed_memory()
        if config.get("threads"):
            torch.set_num_threads(int(config["threads"]))
        classifier = unpack(folder / config.get("model", "model"), device="cpu" if gpu is None else f"cuda:{gpu}")
        paths = [folder / config["graphs"]] if config.get("graphs") else []
        graphs = graphs_beside(classifier, paths, threads=torch.get_num_threads())
        gallery = Gallery.open(folder / config["gallery"]) if config.get("gallery") else None
        engine = Engine(classifier, gallery=gallery, graphs=graphs, options=engine_options(config, context))
        self.start(engine, config, context)
        _log.info("convlens serves %s on %s by torch", classifier.spec.name, classifier.device)
