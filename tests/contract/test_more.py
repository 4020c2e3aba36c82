"""Edits, meshes, actions, vertex and WebSockets. Most of it needs models that no tiny one stands in
for; what any worker answers is tested on the real ones too."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from wsproto.events import CloseConnection

from simulated_worker.msgpack import decode, encode
from tests.contract.harness import IMAGE, Worker, eventually
from tests.contract.sockets import session

PNG = b"\x89PNG\r\n\x1a\n"
FILE = {"image": ("a.png", PNG + b"anything", "image/png")}
REALTIME = "/v1/realtime_video/generate"


def form(**changes: Any) -> dict[str, str]:
    return {name: str(value) for name, value in {**IMAGE, **changes}.items()}


# ---- edits


def test_an_edit(more: Worker) -> None:
    answer = more.http.post("/v1/images/edits", data=form(), files=FILE)
    assert answer.status_code == 200
    (item,) = answer.json()["data"]
    assert item["url"] is None  # inline unless asked otherwise
    assert base64.b64decode(item["b64_json"]).startswith(PNG)

    other = more.http.post("/v1/images/edits", data=form(response_format="url"), files=FILE)
    url = other.json()["data"][0]["url"]
    assert url == f"/v1/images/{other.json()['id']}/content"
    assert more.http.get(url).status_code == 200


def test_several_inputs_of_an_edit(more: Worker) -> None:
    files = [("image[]", FILE["image"]), ("image[]", FILE["image"])]
    assert more.http.post("/v1/images/edits", data=form(), files=files).status_code == 200
    by_address = {**form(), "url": "https://example.invalid/a.png"}
    none = {"unused": ("", b"")}
    if not more.real:
        assert more.http.post("/v1/images/edits", data=by_address, files=none).status_code == 200


def test_an_edit_without_its_parts(worker: Worker) -> None:
    without_prompt = {name: value for name, value in form().items() if name != "prompt"}
    answer = worker.http.post("/v1/images/edits", data=without_prompt, files=FILE)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "prompt"]
    without_image = worker.http.post("/v1/images/edits", data=form(), files={"x": FILE["image"]})
    assert without_image.status_code == 422
    assert without_image.json() == {"detail": "Field 'image' or 'url' is required"}


def test_a_worker_that_takes_no_images_edits_none(worker: Worker) -> None:
    answer = worker.http.post("/v1/images/edits", data=form(), files=FILE)
    assert answer.status_code == 400
    assert isinstance(answer.json()["detail"], str)


def test_a_worker_for_edits_also_takes_plain_text(more: Worker) -> None:
    assert more.image()["data"]


# ---- meshes


def test_a_mesh_from_its_submission_to_its_file(more: Worker) -> None:
    body = {"prompt": "a cat", "num_inference_steps": 2}
    answer = more.http.post("/v1/meshes", data=body, files=FILE)
    assert answer.status_code == 200
    told = answer.json()
    assert (told["object"], told["status"], told["progress"]) == ("mesh", "queued", 0)
    assert told["format"] == "glb"

    def done() -> dict[str, Any] | None:
        job = more.http.get(f"/v1/meshes/{told['id']}").json()
        return job if job["status"] == "completed" else None

    job = eventually(done)
    assert job["progress"] == 100
    file = more.http.get(f"/v1/meshes/{told['id']}/content")
    assert file.headers["content-type"] == "model/gltf-binary"
    assert file.content[:4] == b"glTF"
    assert len(file.content) == job["file_size_bytes"]
    part = more.http.get(f"/v1/meshes/{told['id']}/content", headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"glTF")
    assert told["id"] in {job["id"] for job in more.http.get("/v1/meshes").json()["data"]}
    deleted = more.http.delete(f"/v1/meshes/{told['id']}")
    assert deleted.json()["status"] == "deleted"
    assert more.http.get(f"/v1/meshes/{told['id']}").status_code == 404


def test_a_mesh_needs_an_image(worker: Worker) -> None:
    answer = worker.http.post("/v1/meshes", json={"prompt": "a cat"})
    assert answer.status_code == 422
    assert answer.json() == {"detail": "An input image is required for mesh generation"}


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("GET", "/content")])
def test_an_unknown_mesh(worker: Worker, method: str, path: str) -> None:
    answer = worker.http.request(method, f"/v1/meshes/nope{path}")
    assert (answer.status_code, answer.json()) == (404, {"detail": "Mesh not found"})


def test_the_list_of_meshes(worker: Worker) -> None:
    page = worker.http.get("/v1/meshes").json()
    assert (page["object"], page["data"], page["has_more"]) == ("list", [], False)
    assert worker.http.get("/v1/meshes?limit=0").status_code == 422


# ---- actions


def test_actions(more: Worker) -> None:
    answer = more.http.post("/v1/actions/generations", json={"input": {"prompt": "go"}})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    (row,) = answer.json()["data"]
    assert row["action"]["shape"] == [len(row["action"]["values"]), len(row["action"]["values"][0])]
    packed = more.http.post(
        "/v1/actions/generations",
        content=encode({"input": {"prompt": "go"}}),
        headers={"Content-Type": "application/msgpack"},
    )
    assert packed.headers["content-type"] == "application/msgpack"
    assert decode(packed.content)["object"] == "action.generation"


@pytest.mark.parametrize("path", ["/v1/actions/realtime", "/openpi/policy"])
def test_an_error_ends_a_session_of_actions(more: Worker, path: str) -> None:
    with session(more, path) as socket:
        assert isinstance(socket.receive(), dict)  # what the model is
        socket.send({"input": {"prompt": "go"}})
        assert "server_timing" in socket.receive()
        socket.send(["no map"])
        assert "error" in socket.receive()
        closed = socket.receive()
        assert isinstance(closed, CloseConnection)
        assert closed.code == 1011


def test_other_workers_have_no_actions(worker: Worker) -> None:
    answer = worker.http.post("/v1/actions/generations", json={})
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})


# ---- vertex


def test_vertex(worker: Worker) -> None:
    parameters = {"width": 64, "height": 64, "num_frames": 5 if worker.kind == "video" else None}
    body = {"instances": [{"prompt": "a cat"}, {"text": "a dog"}], "parameters": parameters}
    answer = worker.http.post("/vertex_generate", json=body)
    assert answer.status_code == 200
    predictions = answer.json()["predictions"]
    assert len(predictions) == 2
    for prediction in predictions:
        assert prediction["error"] is None
        assert base64.b64decode(prediction["output"])


def test_vertex_tells_failures_with_200(worker: Worker) -> None:
    worker.http.post("/release_memory_occupation").raise_for_status()
    try:
        body = {"instances": [{"prompt": "a cat"}]}
        answer = worker.http.post("/vertex_generate", json=body)
        assert answer.status_code == 200
        (prediction,) = answer.json()["predictions"]
        assert "sleeping" in prediction["error"]
    finally:
        worker.http.post("/resume_memory_occupation").raise_for_status()


@pytest.mark.parametrize(
    ("body", "status"), [({"instances": []}, 200), ({}, 422), ({"instances": [{}]}, 400)]
)
def test_vertex_without_what_it_needs(worker: Worker, body: Any, status: int) -> None:
    answer = worker.http.post("/vertex_generate", json=body)
    assert answer.status_code == status
    if status == 200:
        assert answer.json() == {"predictions": []}


# ---- realtime video


def test_a_bad_init_leaves_the_socket_open_and_there_are_no_extensions(worker: Worker) -> None:
    with session(worker, REALTIME) as socket:
        assert not socket.accepted.extensions
        for bad in ({"type": "nope"}, {"type": "init"}, ["no map"]):
            socket.send(bad)
            assert socket.receive() == {"type": "error", "content": "invalid generate request"}
        socket.close()


def test_one_realtime_session_at_a_time(video: Worker) -> None:
    if video.real:
        pytest.skip("no tiny model can do realtime video: simulated only")
    init = {"type": "init", "prompt": "a cat", "size": "16x16"}
    with session(video, REALTIME) as first, session(video, REALTIME) as second:
        first.send(init)
        header = first.receive()
        assert header["type"] == "frame_batch_header"
        assert len(first.receive()) == header["total_size"]
        assert first.receive()["type"] == "chunk_stats"
        second.send(init)
        assert second.receive()["type"] == "error"
        closed = second.receive()
        assert isinstance(closed, CloseConnection)
        assert closed.code == 1008
        first.close()
