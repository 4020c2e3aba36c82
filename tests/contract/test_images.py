"""`/v1/images`: generations and their files. For edits see test_more."""

from __future__ import annotations

import base64
import struct
import time
from typing import Any

import pytest

from tests.contract.harness import IMAGE, Worker, connection, head, long_request

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"


def test_an_image_as_a_url(image: Worker) -> None:
    told = image.image()
    assert list(told) == ["id", "created", "data", "peak_memory_mb", "inference_time_s", "usage"]
    assert isinstance(told["created"], int)
    assert told["inference_time_s"] > 0
    (item,) = told["data"]
    path = item.pop("file_path")
    assert item == {
        "b64_json": None,
        "url": f"/v1/images/{told['id']}/content",  # relative
        "revised_prompt": "a cat",
        "resize": None,
    }
    assert path.startswith("/")
    assert path.rpartition("/")[2].startswith(told["id"])

    file = image.http.get(item["url"])
    assert file.status_code == 200
    assert file.content.startswith(
        {"image/png": PNG, "image/jpeg": JPEG}[file.headers["content-type"]]
    )
    assert file.headers["accept-ranges"] == "bytes"
    assert file.headers["etag"].startswith('"')
    assert "last-modified" in file.headers
    assert file.headers["content-disposition"].startswith('attachment; filename="')


def test_an_image_inline(image: Worker) -> None:
    (item,) = image.image(response_format="b64_json", output_format="png")["data"]
    assert item["url"] is None
    data = base64.b64decode(item["b64_json"], validate=True)
    assert data.startswith(PNG)
    assert data == image.picture()


def test_the_size_is_that_asked_for(image: Worker) -> None:
    sides = [
        ({"size": "64x96"}, (64, 96)),
        ({"size": None, "width": 96, "height": 64}, (96, 64)),
        ({"size": "64x64", "width": 96}, (96, 64)),
    ]
    for asked, expected in sides:
        png = image.picture(**asked)
        assert struct.unpack(">II", png[16:24]) == expected


def test_the_same_request_gives_the_same_bytes(image: Worker) -> None:
    first = image.picture()
    assert image.picture() == first
    assert image.picture(seed=8) != first
    assert image.picture(prompt="a dog") != first


def test_several_outputs(image: Worker) -> None:
    told = image.image(n=3, output_format="png")
    urls = [item["url"] for item in told["data"]]
    assert urls == [f"/v1/images/{told['id']}/content?variant={i}" for i in range(3)]
    files = [image.http.get(url).content for url in urls]
    assert len(set(files)) == 3
    assert image.http.get(f"/v1/images/{told['id']}/content").content == files[0]
    for variant in ("3", "x", "-1"):
        answer = image.http.get(f"/v1/images/{told['id']}/content?variant={variant}")
        assert answer.status_code == 404
        assert answer.json() == {"detail": f"Image variant {variant} not found"}


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ("bytes=0-9", slice(0, 10)),
        ("bytes=5-", slice(5, None)),
        ("bytes=-5", slice(-5, None)),
        ("bytes=5-99999999", slice(5, None)),
    ],
)
def test_a_range_of_a_file(image: Worker, wanted: str, part: slice) -> None:
    url = image.image()["data"][0]["url"]
    whole = image.http.get(url).content
    answer = image.http.get(url, headers={"Range": wanted})
    assert answer.status_code == 206
    assert answer.content == whole[part]
    start, end, _ = part.indices(len(whole))
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(whole)}"
    assert answer.headers["content-length"] == str(end - start)


def test_ranges_that_cannot_be_served(image: Worker) -> None:
    url = image.image()["data"][0]["url"]
    size = len(image.http.get(url).content)
    beyond = image.http.get(url, headers={"Range": f"bytes={size}-"})
    assert (beyond.status_code, beyond.content) == (416, b"")
    assert beyond.headers["content-type"].startswith("text/plain")
    assert beyond.headers["content-range"] == f"bytes */{size}"
    assert image.http.get(url, headers={"Range": "lines=1-2"}).status_code == 400


def test_if_none_match_is_ignored(image: Worker) -> None:
    url = image.image()["data"][0]["url"]
    tag = image.http.get(url).headers["etag"]
    assert image.http.get(url, headers={"If-None-Match": tag}).status_code == 200


def test_an_unknown_image(worker: Worker) -> None:
    answer = worker.http.get("/v1/images/nope/content")
    assert (answer.status_code, answer.json()) == (404, {"detail": "Image not found"})


def test_the_model_is_never_checked(image: Worker) -> None:
    assert image.image(model="somebody/else")["data"]


def test_unknown_fields_do_no_harm(image: Worker) -> None:
    assert image.image(something_else={"a": [1]})["data"]


def changed(**changes: Any) -> dict[str, Any]:
    return {**IMAGE, **changes}


@pytest.mark.parametrize(
    ("body", "kind", "place"),
    [
        ({"size": "64x64"}, "missing", ["body", "prompt"]),
        (changed(prompt=None), "string_type", ["body", "prompt"]),
        (changed(prompt=3), "string_type", ["body", "prompt"]),
        (changed(n="two"), "int_parsing", ["body", "n"]),
        ([1], "model_attributes_type", ["body"]),
    ],
)
def test_wrong_fields_are_422_with_a_list(
    image: Worker, body: Any, kind: str, place: list[str]
) -> None:
    answer = image.http.post("/v1/images/generations", json=body)
    assert answer.status_code == 422
    (error,) = answer.json()["detail"]
    assert (error["type"], error["loc"]) == (kind, place)
    assert {"msg", "input"} < set(error)


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"{bad", "json_invalid"), (b"", "missing"), (b"null", "model_attributes_type")],
)
def test_malformed_json_is_422_with_a_list(image: Worker, content: bytes, kind: str) -> None:
    headers = {"Content-Type": "application/json"}
    answer = image.http.post("/v1/images/generations", content=content, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["type"] == kind


@pytest.mark.parametrize(
    "changes",
    [
        *({"response_format": "x"}, {"size": "large"}, {"size": "0x0"}),
        *({"num_inference_steps": 0}, {"num_inference_steps": -1}, {"task_type": "T2V"}),
    ],
)
def test_what_cannot_be_made_is_400_with_a_text(image: Worker, changes: dict[str, Any]) -> None:
    answer = image.http.post("/v1/images/generations", json=changed(**changes))
    assert answer.status_code == 400
    assert isinstance(answer.json()["detail"], str)


def test_a_video_worker_makes_no_images(video: Worker) -> None:
    answer = video.http.post("/v1/images/generations", json=IMAGE)
    assert answer.status_code == 400
    assert isinstance(answer.json()["detail"], str)


def test_nobody_waits_for_the_image_but_it_is_made(image: Worker) -> None:
    """A client that leaves stops nothing."""
    body = image.http.build_request("POST", "/", json=long_request(image)).content
    lines = ("Content-Type: application/json", f"Content-Length: {len(body)}")
    began = time.monotonic()
    with connection(image) as sock:
        sock.sendall(head("POST", "/v1/images/generations", *lines) + body)
        time.sleep(0.1)
    image.idle()
    assert time.monotonic() - began > 0.4 * image.while_
