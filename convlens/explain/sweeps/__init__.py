"""Occlusion sweeps: the windows, what scores them, and which of those is fastest here."""
