"""How far each explanation method can be believed on one's own model and images.

``perturbation`` makes insertion and deletion curves, ``road`` those of ROAD, ``captum_metrics`` infidelity and
max-sensitivity, ``randomisation`` the sanity checks, ``localisation`` compares maps with boxes; ``evaluate`` runs them
over many images, ``statistics`` and ``verdict`` say what came of it.
"""
