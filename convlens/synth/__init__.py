"""Synthesis: images made from what a network has learnt. ``base`` defines what a job is; each kind has a file.

Nothing here writes files or shows progress: ``convlens.jobs`` runs jobs, keeps checkpoints and writes the page.
"""
