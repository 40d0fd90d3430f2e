"""Where forward passes run: in torch, or in exported graphs by ONNX Runtime, behind interfaces of the same shape."""
