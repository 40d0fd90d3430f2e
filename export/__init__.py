"""ONNX graphs that prove themselves: written with their contract, and named only after they agreed with torch.

    from export.exporter import export
    export(convlens.load("torchvision:resnet50"), "scores", "resnet50.onnx")

``python -m export --help`` is the same as a command.
"""
