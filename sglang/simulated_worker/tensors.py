"""Made-up tensors in safetensors form, as rollouts carry them; made while they are sent."""

from __future__ import annotations

import json
import math
import random
import struct
from array import array
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from .messages import PIECE
from .msgpack import Blob

_SIZES = {"bfloat16": ("BF16", 2), "float32": ("F32", 4)}
_BLOCK_VALUES = 4096


def tensor(
    seed: str, shape: tuple[int, ...], dtype: str, size: int | None = None
) -> dict[str, Any]:
    """A serialized tensor of values in -1..1 that follow from `seed`.

    `size` gives the number of value bytes where it is not to follow from the shape (which then
    becomes one dimension of that many values).
    """
    name, width = _SIZES[dtype]
    if size is not None:
        shape = (max(1, size // width),)
    data_bytes = width * math.prod(shape)
    header = json.dumps(
        {"t": {"dtype": name, "shape": list(shape), "data_offsets": [0, data_bytes]}},
        separators=(",", ":"),
    ).encode()
    header += b" " * (-len(header) % 8)
    head = struct.pack("<Q", len(header)) + header

    def pieces() -> Iterator[bytes]:
        yield head
        block = _block(seed, dtype)
        block *= max(1, PIECE // len(block))
        left = data_bytes
        while left > 0:
            yield block[:left]
            left -= len(block)

    return {
        "__tensor__": True,
        "data": Blob(len(head) + data_bytes, pieces),
        "shape": list(shape),
        "dtype": f"torch.{dtype}",
    }


@lru_cache(maxsize=64)
def _block(seed: str, dtype: str) -> bytes:
    dice = random.Random(seed)
    values = array("f", (dice.uniform(-1, 1) for _ in range(_BLOCK_VALUES)))
    if dtype == "float32":
        return values.tobytes()
    # the upper half of a float32 is the bfloat16 (little endian: the later two bytes)
    return b"".join(values.tobytes()[at : at + 2] for at in range(2, 4 * _BLOCK_VALUES, 4))
