"""Exact incremental occlusion: an ordinary graph of kind ``occlusion`` that recomputes what a window can change.

A full sweep runs the whole network for each window. But a window changes a part of each layer's map only, and that part
grows from layer to layer by what the kernels reach. So the picture's own maps are computed once, before the loop, and
for each window a crop of them is taken, with the window's changes pasted into it, run through a few layers, pasted into
the next crop, and so on; behind the last *cut* the network runs on whole maps. The scores are those of a full sweep.

    reading    the network in the exported graph, as far as every layer's reach is known
    reach      interval arithmetic of one layer along one axis
    cuts       where a network can be cut, and what each window can change of its maps
    stages     crops from one cut to the next, and the proof for each window that they are right where they are pasted
    cost       what stages and whole maps are expected to cost
    planning   the cheapest way through the cuts
    drawing    the plan as ONNX nodes
    sweep      all of it, or a full sweep and the reason

Nothing here knows a network by name. A layer whose reach is not known ends the part that is recomputed in crops, and so
does one that looks at the whole picture, like squeeze-and-excitation.

US patent 12,346,812 (Nakandala, Kumar, Papakonstantinou) claims incremental CNN inference for occlusion combined with
coarse-to-fine refinement. That refinement is not built here, and this strategy is never a default: who uses it decides.
"""
