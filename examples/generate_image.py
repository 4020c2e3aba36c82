"""Make images through the router and save them, with nothing but the standard library.

Usage: python3 examples/generate_image.py "a red kite over the sea" --router http://localhost:30081
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path


def generate(router: str, request: dict[str, object], timeout: float) -> tuple[list[bytes], str]:
    """The images, and the id of the worker that made them. Raises urllib.error.HTTPError."""
    call = urllib.request.Request(
        f"{router}/v1/images/generations",
        data=json.dumps(request).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(call, timeout=timeout) as response:
        worker = response.headers["X-Worker-Id"]
        answer = json.load(response)
    return [base64.b64decode(item["b64_json"]) for item in answer["data"]], worker


def why(error: urllib.error.HTTPError) -> str:
    """What an error answer says. The router's own has `error` and `code`, a worker's has not."""
    text = error.read().decode(errors="replace")
    try:
        said = json.loads(text)
        return f"{said['error']} ({said['code']})"
    except (ValueError, KeyError, TypeError):
        return text or error.reason


def main() -> int:
    parser = argparse.ArgumentParser(description="Make images through the router.")
    parser.add_argument("prompt")
    parser.add_argument("--router", default="http://localhost:30081")
    parser.add_argument("--model", help="default: whatever the pool serves")
    parser.add_argument("--size", default="512x512")
    parser.add_argument("--seed", type=int)
    parser.add_argument("-n", type=int, default=1, help="how many images")
    parser.add_argument("--output", type=Path, default=Path("image.png"))
    parser.add_argument("--timeout", type=float, default=1800, help="in seconds")
    options = parser.parse_args()

    request = {
        "prompt": options.prompt,
        "model": options.model,
        "size": options.size,
        "seed": options.seed,
        "n": options.n,
        # The image comes within the answer; "url" would only tell where to fetch it.
        "response_format": "b64_json",
        "output_format": "png",  # the default is JPEG
    }
    request = {name: value for name, value in request.items() if value is not None}
    try:
        images, worker = generate(options.router.rstrip("/"), request, options.timeout)
    except urllib.error.HTTPError as error:
        print(f"{error.code}: {why(error)}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{options.router} could not be reached: {error}", file=sys.stderr)
        return 1
    for index, image in enumerate(images):
        name = options.output
        if len(images) > 1:
            name = name.with_stem(f"{name.stem}_{index}")
        name.write_bytes(image)
        print(f"{name}: {len(image)} bytes, made by {worker}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
