"""Arrays and images inside a reply: raw little-endian numbers or encoded images, as base64 text or by name in a file.

Not as nested lists of numbers: a map of 224 × 224 has 1.3 MB so and takes 44 ms through TorchServe; in base64 it has
268 kB and takes 5 ms, in safetensors 201 kB and 4 ms.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from convlens.protocol.params import Dtype
from convlens.types import Floats

NO_ARRAYS: Mapping[str, memoryview] = MappingProxyType({})


class ReplyModel(BaseModel):
    """A part of a reply, built from the library's values and parsed from JSON."""

    # The published schema is closed, but parsing ignores unknown keys: a newer server may send more than this client
    # knows.
    model_config = ConfigDict(
        extra="ignore", frozen=True, from_attributes=True, json_schema_extra={"additionalProperties": False}
    )

    def json_object(self) -> dict[str, Any]:
        """The JSON object; a field that was not set is absent, one that was set to None is null."""
        return self.model_dump(exclude_unset=True)


class ArrayBody(ReplyModel):
    """Raw little-endian numbers in C order: base64 text, or in a file of arrays the name of the array there."""

    dtype: Dtype
    shape: list[int]
    layout: str = Field(description="CHW, 1HW, or the axes of an extra; C channel, H height, W width, R, Q windows.")
    encoding: Literal["base64", "attached"]
    data: str

    @classmethod
    def of(
        cls, values: Floats, dtype: Dtype, layout: str, *, name: str = "", file: dict[str, Floats] | None = None
    ) -> Self:
        """The array in base64, or where there is a ``file``, put there under ``name``.

        Values beyond the range of ``dtype`` become its largest value and not infinite.
        """
        limits, shape = np.finfo(dtype), list(values.shape)
        array = np.ascontiguousarray(np.clip(values, limits.min, limits.max), dtype=dtype)
        if file is None:
            return cls(dtype=dtype, shape=shape, layout=layout, encoding="base64", data=_base64(array.tobytes()))
        file[name] = array
        return cls(dtype=dtype, shape=shape, layout=layout, encoding="attached", data=name)

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


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
