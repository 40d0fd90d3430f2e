"""Arrays and images inside a reply: raw little-endian numbers or encoded images, as base64 text or by name in a file.

Base64 and no nested lists of numbers: a float32 takes 5.3 bytes instead of about 20, and arrives bit for bit.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from convlens.types import Floats

NO_ARRAYS: Mapping[str, memoryview] = MappingProxyType({})


class ReplyModel(BaseModel):
    """A part of a reply, built from the library's values and parsed from JSON."""

    # The published schema is closed, so that a client's tests notice a key that it does not know; whoever parses
    # ignores such keys, because a newer server may send more than this client knows.
    model_config = ConfigDict(
        extra="ignore", frozen=True, from_attributes=True, json_schema_extra={"additionalProperties": False}
    )

    def json_object(self) -> dict[str, Any]:
        """The JSON object; a field that was not set is absent, one that was set to None is null."""
        return self.model_dump(exclude_unset=True)


class ArrayBody(ReplyModel):
    """Raw little-endian numbers in C order: base64 text, or in a file of arrays the name of the array there."""

    dtype: Literal["<f4", "<f2"]
    shape: list[int]
    layout: str = Field(description="CHW, 1HW, or the axes of an extra; C channel, H height, W width, R, Q windows.")
    encoding: Literal["base64", "attached"]
    data: str

    @classmethod
    def in_base64(cls, values: Floats, dtype: Literal["<f4", "<f2"], layout: str) -> Self:
        """The array itself; values beyond ``dtype`` become its largest."""
        text = _base64(saturated(values, dtype).data)
        return cls(dtype=dtype, shape=list(values.shape), layout=layout, encoding="base64", data=text)

    @classmethod
    def by_name(cls, values: Floats, dtype: Literal["<f4", "<f2"], layout: str, name: str) -> Self:
        """A reference to the array of this name in the file that the reply is part of."""
        return cls(dtype=dtype, shape=list(values.shape), layout=layout, encoding="attached", data=name)

    def decode(self, attached: Mapping[str, memoryview] = NO_ARRAYS) -> Floats:
        """The array, read-only; ``attached`` holds the raw bytes of the arrays in the file, which are not copied.

        Raises KeyError or ValueError where the data are missing or do not fit the shape.
        """
        raw = attached[self.data] if self.encoding == "attached" else base64.b64decode(self.data)
        flat: Floats = np.frombuffer(raw, dtype=np.dtype(self.dtype))
        return flat.reshape(self.shape)


class PictureBody(ReplyModel):
    """An encoded picture."""

    media_type: Literal["image/png", "image/jpeg"]
    encoding: Literal["base64"]
    data: str

    @classmethod
    def of(cls, encoded: bytes, media_type: Literal["image/png", "image/jpeg"]) -> Self:
        return cls(media_type=media_type, encoding="base64", data=_base64(encoded))

    def decode(self) -> bytes:
        return base64.b64decode(self.data)


# Makes the body of an array from its values, its layout and its name within the reply.
EncodeArray = Callable[[Floats, str, str], ArrayBody]


def saturated(values: Floats, dtype: str) -> Floats:
    """The values as ``dtype``, in C order; what is beyond its range becomes its largest value and not infinite."""
    target = np.dtype(dtype)
    clipped = np.clip(values, np.finfo(target).min, np.finfo(target).max)
    return np.ascontiguousarray(clipped, dtype=target)


def _base64(data: bytes | memoryview) -> str:
    return base64.b64encode(data).decode("ascii")
