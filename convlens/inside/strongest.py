"""The strongest places of each channel over any number of pictures, of which only the best are kept."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from convlens.types import Floats, Ints


@dataclass
class Strongest:
    """For each of ``channels`` the ``k`` pictures where it was largest anywhere, and where in them.

    Pictures come in any batches, in order; a picture counts once a channel, by its largest value (the first place of
    equals, row by row). Of equal values the earlier picture stands first. ``value_CM`` falls along M; places that are
    not taken yet hold -inf and picture -1.
    """

    channels: int
    k: int
    seen: int = 0
    value_CM: Floats = field(init=False)
    picture_CM: Ints = field(init=False)
    y_CM: Ints = field(init=False)
    x_CM: Ints = field(init=False)

    def __post_init__(self) -> None:
        shape = self.channels, self.k
        self.value_CM = np.full(shape, -np.inf, np.float32)
        self.picture_CM, self.y_CM, self.x_CM = (np.full(shape, fill, np.int64) for fill in (-1, 0, 0))

    def add(self, maps_NCHW: Floats) -> None:
        """The layer's output for the next pictures."""
        count, channels, _, width = maps_NCHW.shape
        flat_NCP = maps_NCHW.reshape(count, channels, -1)
        at_NC = flat_NCP.argmax(axis=2)
        value_NC = np.take_along_axis(flat_NCP, at_NC[..., None], axis=2)[..., 0]
        picture_N1 = np.arange(self.seen, self.seen + count)[:, None]
        y_NC, x_NC = np.divmod(at_NC, width)
        self._merge(value_NC.T, np.broadcast_to(picture_N1, at_NC.shape).T, y_NC.T, x_NC.T)
        self.seen += count

    def _merge(self, value_CN: Floats, picture_CN: Ints, y_CN: Ints, x_CN: Ints) -> None:
        value_CA = np.concatenate([self.value_CM, value_CN], axis=1)
        # Stable, and earlier pictures stand before later ones: of equals the earlier one stays.
        order_CM = np.argsort(-value_CA, axis=1, kind="stable")[:, : self.k]
        kept = [(self.picture_CM, picture_CN), (self.y_CM, y_CN), (self.x_CM, x_CN)]
        self.value_CM = np.take_along_axis(value_CA, order_CM, axis=1)
        self.picture_CM, self.y_CM, self.x_CM = (
            np.take_along_axis(np.concatenate(pair, axis=1), order_CM, axis=1) for pair in kept
        )
