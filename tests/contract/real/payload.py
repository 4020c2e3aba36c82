"""A body for `/update_weights_from_tensor`. Runs where requirements.txt is installed.

    python payload.py FOLDER [TENSOR]

Prints JSON: the named tensor of the folder's safetensors, or all of them, as a trainer would send
them, and the digests that `/update_weights_from_tensor_checker` wants to hear.
"""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file


def main(folder: Path, *names: str) -> None:
    (file,) = folder.glob("*.safetensors")
    loaded = load_file(file)
    tensors = [(name, loaded[name].to(torch.bfloat16)) for name in names or loaded]
    sha256 = {}
    for name, tensor in tensors:
        digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        sha256[name] = digest.hexdigest()
    print(
        json.dumps({"payload": base64.b64encode(pickle.dumps(tensors)).decode(), "sha256": sha256})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
