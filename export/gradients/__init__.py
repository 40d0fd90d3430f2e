"""Gradient explanations as forward-only ONNX graphs."""
