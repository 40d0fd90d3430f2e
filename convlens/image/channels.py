"""Images of any number of channels: read from TIFF and .npy, and shown as three of their channels."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from convlens.errors import ImageError, ImageTooLargeError
from convlens.image.codec import DAMAGE, DEFAULT_LIMITS, Limits, OnBlock, decode, read_bytes
from convlens.image.formats import format_of
from convlens.image.tiff import check_pages, read_tiff
from convlens.types import Bytes8, ModelSpec, no_op

NPY = b"\x93NUMPY"
_LARGEST_FILE = 2**28  # bytes
_TIFFS = (b"II\x2a\x00", b"MM\x00\x2a", b"II\x2b\x00", b"MM\x00\x2b")
# A deep image is shown from this many standard deviations of the training images below their mean to as many above;
# with ImageNet's numbers that is -0.1 to 1.0.
_SHOWN_STD = 2.5


@dataclass(frozen=True)
class ChannelImage:
    """An upright image of C channels: ``values_HWC`` is uint8, or float32 of 0..1 where the file was deeper."""

    values_HWC: NDArray[Any]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, as Pillow's images have it."""
        height, width = self.values_HWC.shape[:2]
        return width, height

    @property
    def width(self) -> int:
        return self.size[0]

    @property
    def height(self) -> int:
        return self.size[1]

    @property
    def channels(self) -> int:
        return int(self.values_HWC.shape[2])


Picture = Image.Image | ChannelImage
"""What a model's input is prepared from: an RGB image, or one of as many channels as the model takes."""


def decode_channels(
    data: bytes | bytearray | memoryview,
    channels: int,
    *,
    limits: Limits = DEFAULT_LIMITS,
    on_block: OnBlock = no_op,
) -> Picture:
    """An encoded image for a model of that many channels.

    For three it is :func:`decode`, for one as well, and .npy beside it: colours become grey when the image is prepared.
    For any other number it is a TIFF, its channels interleaved, in planes or one a page, or a .npy file of (H, W, C).
    Values are uint8, uint16 (0..65535) or floats of 0..1. A TIFF's orientation is not looked at. Calls ``on_block`` as
    :func:`decode` does. Raises
    ImageTooLargeError over a limit, and ImageError for another number of channels and for what cannot be read.
    """
    if channels == 3:
        return decode(data, limits=limits, on_block=on_block)
    if len(data) > limits.bytes:
        raise ImageTooLargeError(f"a body of {len(data)} bytes; at most {limits.bytes} are allowed: send a smaller one")
    on_block()
    data = bytes(data)
    if data.startswith(NPY):
        return _checked(_read_npy(data, channels, limits), "an npy file")
    if channels == 1:
        return decode(data, limits=limits, on_block=on_block)
    if data.startswith(_TIFFS):
        return _checked(_read_tiff(data, channels, limits), "a TIFF")
    raise ImageError(f"the model takes {channels} channels, which a {format_of(data)} has not; {_needed(channels)}")


def file_limits(channels: int) -> Limits:
    """How large a local file may be: arrays and TIFFs of many channels are larger than photographs."""
    return DEFAULT_LIMITS if channels in (1, 3) else Limits(bytes=_LARGEST_FILE)


def read_channels(path: str | PathLike[str], channels: int, *, limits: Limits | None = None) -> Picture:
    """:func:`decode_channels` of a file, by default within ``file_limits``; every error names the path."""
    limits = limits or file_limits(channels)
    data = read_bytes(path, limits=limits)
    try:
        return decode_channels(data, channels, limits=limits)
    except ImageError as error:
        raise type(error)(f"{path}: {error.message}") from error


def read_shown(path: str | PathLike[str]) -> Image.Image:
    """A file to be looked at where the model is not at hand: RGB, or the first channels of a TIFF or .npy file.

    Deep values are shown from the image's smallest to its largest.
    """
    limits = Limits(bytes=_LARGEST_FILE)
    data = read_bytes(path, limits=limits)
    try:
        if not data.startswith((NPY, *_TIFFS)):
            return decode(data, limits=limits)
        try:
            return decode(data, limits=limits)
        except ImageTooLargeError:
            raise
        except ImageError:  # of channels that Pillow has no mode for
            values_HWC = (_read_npy if data.startswith(NPY) else _read_tiff)(data, None, limits)
    except ImageError as error:
        raise type(error)(f"{path}: {error.message}") from error
    shown_HWC = values_HWC[..., [0, 1, 2] if values_HWC.shape[2] >= 3 else [0, 0, 0]]
    if shown_HWC.dtype != np.uint8:
        low, high = float(shown_HWC.min()), float(shown_HWC.max())
        shown_HWC = np.rint((shown_HWC - low) * (255 / ((high - low) or 1.0))).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(shown_HWC))


def require_channels(picture: Picture, spec: ModelSpec) -> None:
    """ImageError for an image that is not of the model's channels; RGB images are taken for grey ones as well."""
    if isinstance(picture, ChannelImage):
        if picture.channels != spec.channels:
            raise ImageError(
                f"an image of {picture.channels} channels; {spec.name} takes {spec.channels}: {_needed(spec.channels)}"
            )
        return
    if picture.mode != "RGB" and (picture.mode, spec.channels) != ("L", 1):
        raise ValueError(f"image has mode {picture.mode}; prepare needs RGB, or L for a model of grey")
    if spec.channels not in (1, 3):
        raise ImageError(f"an RGB image; {spec.name} takes {spec.channels} channels: {_needed(spec.channels)}")


def displayed(values_HWC: NDArray[Any], spec: ModelSpec) -> Bytes8:
    """(H, W, 3), to be looked at: the display channels as red, green and blue, a single one as grey.

    Deep values (floats) are shown on the model's own scale, from 2.5 standard deviations below its mean to as many
    above, whatever the image: satellites fill a small part of 16 bits.
    """
    if values_HWC.shape[2] != spec.channels:
        raise ValueError(f"values have shape {values_HWC.shape}; need (H, W, {spec.channels})")
    chosen = list(shown_channels(spec))
    if chosen == [0, 1, 2] == list(range(spec.channels)) and values_HWC.dtype == np.uint8:
        return values_HWC
    shown_HWC = values_HWC[..., chosen]
    if shown_HWC.dtype != np.uint8:
        mean, std = (np.asarray(part, np.float32)[chosen] for part in (spec.mean, spec.std))
        part_HWC = (shown_HWC - mean) / (2 * _SHOWN_STD * std) + 0.5
        shown_HWC = np.rint(255 * part_HWC.clip(0, 1)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(shown_HWC, (*shown_HWC.shape[:2], 3)))


def displayed_mean(spec: ModelSpec) -> tuple[int, ...]:
    """The training mean as it is shown in 8 bits: red, green, blue."""
    levels = [round(255 * spec.mean[channel]) for channel in shown_channels(spec)]
    return tuple(levels * (3 // len(levels)))


def display_image(picture: Picture, spec: ModelSpec) -> Bytes8:
    """The whole image (H, W, 3) as it is shown: grey for a model of one channel."""
    if isinstance(picture, ChannelImage):
        return displayed(picture.values_HWC, spec)
    if spec.channels == 1:
        return displayed(np.asarray(picture.convert("L"))[..., None], spec)
    return displayed(np.asarray(picture), spec) if spec.channels == 3 else np.asarray(picture)


def shown_channels(spec: ModelSpec) -> tuple[int, ...]:
    """The channels shown as red, green and blue, or the one shown as grey; of two channels the first."""
    if spec.display_channels:
        return spec.display_channels
    return (0, 1, 2) if spec.channels >= 3 else (0,)


def encode_npy(values: NDArray[Any]) -> bytes:
    """An array as the bytes of a .npy file, for servers of models that take other channels than RGB."""
    with io.BytesIO() as file:
        npy.write_array(file, values, allow_pickle=False)
        return file.getvalue()


def _needed(channels: int | None) -> str:
    if channels is None:
        return "send one of height, width and channels"
    if channels == 1:
        return "send a grey or RGB image, or a .npy file of (H, W) or (H, W, 1)"
    if channels == 3:
        return "send an RGB image"
    return (
        f"send a TIFF of {channels} channels, or a .npy file of (H, W, {channels}) in uint8, uint16 or floats of 0..1"
    )


def _checked(values_HWC: NDArray[Any], kind: str) -> ChannelImage:
    """The values as ChannelImage has them: uint8 as they are, others as float32 of 0..1."""
    if values_HWC.dtype == np.uint8:
        return ChannelImage(values_HWC)
    if values_HWC.dtype == np.uint16:
        return ChannelImage(np.asarray(values_HWC, np.float32) / np.float32(65535))
    if values_HWC.dtype.kind != "f":
        raise ImageError(f"{kind} of {values_HWC.dtype}; values may be uint8, uint16 or floats of 0..1: convert them")
    low, high = float(values_HWC.min()), float(values_HWC.max())
    if not (low >= 0 and high <= 1):  # so that NaN is refused as well
        raise ImageError(f"{kind} of floats from {low:g} to {high:g}; only 0..1 is known: scale it to that")
    return ChannelImage(np.ascontiguousarray(values_HWC, np.float32))


def _read_npy(data: bytes, channels: int | None, limits: Limits) -> NDArray[Any]:
    try:
        shape, fortran_order, dtype, start = _npy_header(data)
    except DAMAGE as error:
        raise ImageError(f"a damaged npy file ({_reason(error)}); write it by numpy.save") from error
    if channels in (1, None) and len(shape) == 2:
        shape = (*shape, 1)
        if fortran_order:
            raise ImageError("an npy file in Fortran order; write it by numpy.save(file, numpy.ascontiguousarray(x))")
    if len(shape) != 3 or 0 in shape or shape[2] != (channels or shape[2]):
        raise ImageError(f"an npy file of shape {shape}; {_needed(channels)}")
    _check_size(shape[1], shape[0], shape[2], limits)
    count = shape[0] * shape[1] * shape[2]
    # numpy would reserve what the header claims before it looks whether there is as much.
    if dtype.hasobject or dtype.kind not in "uif" or len(data) - start != count * dtype.itemsize:
        raise ImageError(
            f"an npy file whose header says {shape} of {dtype}, with {len(data) - start} bytes of values; send the "
            "whole file, of plain numbers"
        )
    flat = np.frombuffer(data, dtype, count, start)
    values_HWC = flat.reshape(shape, order="F" if fortran_order else "C")
    return values_HWC.astype(dtype.newbyteorder("="), order="C")


def _npy_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    file = io.BytesIO(data)
    version = npy.read_magic(file)
    readers: dict[tuple[int, int], Callable[..., Any]] = {
        (1, 0): npy.read_array_header_1_0,
        (2, 0): npy.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"format version {version}")
    shape, fortran_order, dtype = readers[version](file)
    return shape, fortran_order, dtype, file.tell()


def _read_tiff(data: bytes, channels: int | None, limits: Limits) -> NDArray[Any]:
    try:
        import tifffile
    except ModuleNotFoundError as error:
        raise ImageError(
            "a TIFF of other channels than RGB needs the package tifffile; install it by pip install 'convlens[tiff]', "
            "or send a .npy file of (H, W, channels)"
        ) from error
    check_pages(data)
    read_tiff(data).check_parts(data, by_pillow=False)
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            return _tiff_values(file, channels, limits)
    except ImageError:
        raise
    except (*DAMAGE, tifffile.TiffFileError) as error:
        raise ImageError(
            f"a TIFF that is damaged or of a rare kind ({_reason(error)}); send the whole file, or a .npy file of "
            "(H, W, channels)"
        ) from error


def _tiff_values(file: Any, channels: int | None, limits: Limits) -> NDArray[Any]:
    """(H, W, C) of the first page, or of as many grey pages as there are channels."""
    first = file.pages.first
    samples, pages = first.samplesperpixel, len(file.pages)
    _check_size(first.imagewidth, first.imagelength, samples if samples > 1 else channels or pages, limits)
    if samples == channels or (channels is None and (samples > 1 or pages == 1)):
        return _channels_last(first.asarray(), first.axes)
    if samples == 1 and pages == (channels or pages):
        if any(page.shape != first.shape or page.dtype != first.dtype for page in file.pages):
            raise ImageError(f"a TIFF of {pages} pages of different kinds; {_needed(channels)}")
        return np.stack([_channels_last(page.asarray(), page.axes)[..., 0] for page in file.pages], axis=-1)
    many = f" on {pages} pages" if pages > 1 else ""
    raise ImageError(f"a TIFF of {samples} channel{'s' * (samples > 1)}{many}; {_needed(channels)}")


def _channels_last(values: NDArray[Any], axes: str) -> NDArray[Any]:
    """A page's values as (H, W, C); ``axes`` has S for the samples, which come first where they lie in planes."""
    if axes == "YX":
        return values[..., None]
    if axes not in ("YXS", "SYX"):
        raise ImageError(f"a TIFF with axes {axes}; its pages may have height, width and channels only")
    return np.ascontiguousarray(values if axes == "YXS" else values.transpose(1, 2, 0))


def _check_size(width: int, height: int, channels: int, limits: Limits) -> None:
    """Of many channels there may be as many values in all as an RGB image of the most pixels has."""
    if width * height > limits.pixels or width * height * channels > 3 * limits.pixels:
        raise ImageTooLargeError(
            f"an image of {width} x {height} pixels in {channels} channels; at most {limits.pixels} pixels and "
            f"{3 * limits.pixels} values are allowed: send a smaller one"
        )


def _reason(error: BaseException) -> str:
    """One short line, since messages may end up in HTTP headers."""
    return " ".join(str(error).split())[:120] or type(error).__name__
