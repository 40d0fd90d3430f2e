"""Gradient explanations as forward-only ONNX graphs: the backward pass is traced as ordinary operators."""
