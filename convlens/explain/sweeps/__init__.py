"""Occlusion sweeps: ``windows`` says where they lie, ``backends`` scores them, ``autotune`` picks the fastest one."""
