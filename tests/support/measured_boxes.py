"""Where objects are in real photographs, measured by hand. Boxes are left, top, right, bottom."""

from __future__ import annotations

from convlens.evaluation.objects import MarkedObject, ObjectBox, ObjectPolygons

# Of the pictures of these classes in data/imagenet, on the 224-pixel view.
VIEW_BOXES = {
    "African elephant": (0, 90, 224, 140),  # the herd along the water
    "go-kart": (0, 62, 200, 172),  # kart and driver
    "koala": (0, 40, 110, 200),  # the face
    "goldfish": (0, 30, 219, 192),
    "golden retriever": (22, 0, 186, 200),
}

_TRIPOD = ((275, 186), (300, 186), (300, 310), (312, 325), (405, 512), (228, 512), (280, 325), (282, 310))

# File of scikit-image, label, object, in pixels of the file. The first three leave out the centre of the picture. The
# cat is not among them: it fills the whole view.
PHOTOGRAPHS: tuple[tuple[str, str, MarkedObject], ...] = (
    ("camera.png", "tripod", ObjectPolygons((_TRIPOD,))),
    ("astronaut.png", "football helmet", ObjectBox((277, 343, 500, 512))),  # a space helmet, held at the lower right
    ("astronaut.png", "space shuttle", ObjectBox((355, 0, 458, 290))),
    ("coffee.png", "espresso", ObjectBox((173, 18, 402, 285))),  # the cup
    ("rocket.jpg", "missile", ObjectBox((308, 125, 337, 405))),
    ("motorcycle_left.png", "moped", ObjectBox((88, 85, 690, 452))),
)
