"""Exact incremental occlusion: an ordinary graph of kind ``occlusion`` that recomputes what a window can change.

A full sweep runs the whole network for each window. But a window changes only a part of each layer's map, and that part
grows from layer to layer by the kernels' reach. So the maps of the unoccluded image are computed once, before the loop.
For each window a crop of them, with the window's changes pasted in, runs through a stage of a few layers; the result is
pasted into the crop of the next stage, and so on. After the last *cut* the network runs on whole maps. The scores are
those of a full sweep.

    network    the network in the exported graph, as far as every layer's reach is known
    intervals  interval arithmetic of one layer along one axis
    cuts       where a network can be cut, and what each window can change of its maps
    stages     crops from one cut to the next, with the proof for each window that they are right where they are pasted
    planner    what stages and whole maps are expected to cost, and the cheapest way through the cuts
    emit       the plan as ONNX nodes
    builder    all of it, or a full sweep and the reason

Nothing here knows a network by name. Crops end before a layer whose reach is not known, or which sees the whole image,
such as squeeze-and-excitation.

US patent 12,346,812 (Nakandala, Kumar, Papakonstantinou) claims incremental CNN inference for occlusion combined with
coarse-to-fine refinement. That refinement is not built here, and this strategy is never a default: who uses it decides.
"""
