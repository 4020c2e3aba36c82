"""A body for `/update_weights_from_tensor`. Runs where requirements.txt is installed.

    python payload.py MODEL_DIR TENSOR

Prints JSON: the named tensor of the model's transformer as a trainer would send it, and the digest
that `/update_weights_from_tensor_checker` wants to hear.
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


def main(model: Path, name: str) -> None:
    (file,) = (model / "transformer").glob("*.safetensors")
    tensor = load_file(file)[name].to(torch.bfloat16)
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    sent = base64.b64encode(pickle.dumps([(name, tensor)])).decode()
    print(json.dumps({"payload": sent, "sha256": {name: digest.hexdigest()}}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
