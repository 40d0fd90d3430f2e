"""TorchServe's entry point for archives of exported graphs: no network, no torch forward, no torchvision or timm."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from convlens.engine.engine import Engine
from convlens.explain.onnx_forward import GraphModel
from convlens.gallery import Gallery
from convlens.runtime.torch_runtime import give_back_freed_memory
from convlens.serving import structured_logging
from convlens.serving.handler import BatchHandler, assigned_gpu, engine_options, handler_config

_log = logging.getLogger(__name__)


class OnnxHandler(BatchHandler):
    """One worker's graphs. TorchServe finds the only class here, calls initialize once, then handle for each batch."""

    def initialize(self, context: Any) -> None:
        """Open the archive's graphs and gallery; what it raises makes the worker fail to start."""
        structured_logging.setup()
        config, gpu = handler_config(context), assigned_gpu(context)
        folder = Path(context.system_properties["model_dir"])
        options = engine_options(config, context)
        model = GraphModel.open(
            folder / config.get("graphs", "graphs"),
            providers="cpu" if gpu is None else "cuda",
            device_id=gpu or 0,
            threads=int(config.get("threads") or torch.get_num_threads()),
            precision=options.precision or "float32",
        )
        gallery = Gallery.open(folder / config["gallery"]) if config.get("gallery") else None
        engine = Engine(model, gallery=gallery, options=options)
        self.start(engine, config, context)
        give_back_freed_memory()  # opening five graphs of the default model frees 70 MB
        _log.info("convlens serves %s by %s", model.spec.name, model.main.name)
