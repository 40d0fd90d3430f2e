"""TorchServe's entry point for archives with a network: it loads them, ``BatchHandler`` does the rest."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from convlens.engine.backend import graphs_beside
from convlens.engine.engine import Engine
from convlens.gallery import Gallery
from convlens.instrument import use_precision
from convlens.models import unpack
from convlens.runtime.torch_runtime import keep_freed_memory
from convlens.serving import structured_logging
from convlens.serving.handler import BatchHandler, assigned_gpu, engine_options, handler_config

_log = logging.getLogger(__name__)


class ConvLensHandler(BatchHandler):
    """One worker's model. TorchServe finds the only class here, calls initialize once, then handle for each batch."""

    def initialize(self, context: Any) -> None:
        """Load the archive's model, graphs and gallery; what it raises makes the worker fail to start."""
        structured_logging.setup()
        config, gpu = handler_config(context), assigned_gpu(context)
        folder = Path(context.system_properties["model_dir"])
        keep_freed_memory()
        options = engine_options(config, context)
        use_precision(options.precision or "float32")
        if config.get("threads"):
            torch.set_num_threads(int(config["threads"]))
        device = "cpu" if gpu is None else f"cuda:{gpu}"
        classifier = unpack(folder / config.get("model", "model"), device=device, precision=options.precision)
        paths = [folder / config["graphs"]] if config.get("graphs") else []
        graphs = graphs_beside(classifier, paths, threads=torch.get_num_threads())
        gallery = Gallery.open(folder / config["gallery"]) if config.get("gallery") else None
        engine = Engine(classifier, gallery=gallery, graphs=graphs, options=options)
        self.start(engine, config, context)
        _log.info("convlens serves %s on %s by torch", classifier.spec.name, classifier.device)
