"""Images and videos through the router with the OpenAI SDK (`pip install openai`).

Usage: python3 examples/openai_client.py http://localhost:30081
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import openai

router = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:30081"
client = openai.OpenAI(
    base_url=f"{router}/v1",
    api_key="unused",  # the SDK wants one; generating needs none
    timeout=1800,
    max_retries=0,  # the router retries where that is safe; a client cannot know where
)

models = [model.id for model in client.models.list()]
print("models:", ", ".join(models))

answer = client.images.generate(
    model=models[0],
    prompt="a red kite over the sea",
    size="1024x1024",
    response_format="b64_json",
    output_format="png",
    extra_body={"seed": 7, "num_inference_steps": 8},  # what SGLang takes beyond OpenAI's fields
)
assert answer.data
image = base64.b64decode(answer.data[0].b64_json or "")
Path("kite.png").write_bytes(image)
print(f"kite.png: {len(image)} bytes")

edited = client.images.edit(
    model=models[0],
    image=Path("kite.png"),
    prompt="a blue kite",
    size="1024x1024",
    response_format="b64_json",
    output_format="png",
)
assert edited.data
Path("kite_blue.png").write_bytes(base64.b64decode(edited.data[0].b64_json or ""))
print("kite_blue.png: edited")

job = client.videos.create_and_poll(
    model=models[0], prompt="a red kite over the sea", seconds="4", size="720x1280"
)
print(f"video {job.id}: {job.status}")
client.videos.download_content(job.id).write_to_file("kite.mp4")
print(f"kite.mp4: {Path('kite.mp4').stat().st_size} bytes")

for listed in client.videos.list(limit=10):  # asks for further pages by itself
    if listed.id == job.id:
        client.videos.delete(listed.id)
try:
    client.videos.retrieve(job.id)
except openai.NotFoundError as error:
    print(f"deleted: {error.body}")

try:
    client.images.generate(model=models[0], prompt="a kite", response_format="papyrus")
except openai.BadRequestError as error:
    print(f"refused as it should be: {error.status_code}")
