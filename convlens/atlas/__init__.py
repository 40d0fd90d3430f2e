"""The microscope: every channel of a network's layers, with what excites it and what it speaks for, as a site.

``survey`` runs the images once, ``channel`` draws one channel, ``build`` puts both together in a folder that a killed
run goes on with (``site_dir``), ``pages`` makes it a site.
"""

from __future__ import annotations

from convlens.atlas.build import Atlas, build_atlas
from convlens.atlas.channel import ChannelOptions
from convlens.atlas.site_dir import read_atlas

__all__ = ["Atlas", "ChannelOptions", "build_atlas", "read_atlas"]
