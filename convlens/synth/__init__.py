"""Synthesis: pictures made from what a network has learnt. ``job.py`` says what a job is; one file a kind.

Nothing here writes files or shows progress: ``convlens.jobs`` runs jobs, keeps checkpoints and makes the page.
"""
