"""What clients and workers say to the router, in bytes: what the mutator begins with.

`TOKEN` stands for what is unique to a case, `ACCEPT` for the answer to a WebSocket's key.
"""

from __future__ import annotations

import gzip
import json
from typing import Any

TOKEN = b"tkTOKENTOKENTOKEN0"
ACCEPT = b"ACCEPTACCEPTACCEPTACCEPTACCE"
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="


def _lines(first: str, *fields: str) -> bytes:
    return "\r\n".join([first, *fields, "", ""]).encode("latin-1")


def _request(first: str, *fields: str, body: bytes | None = None) -> bytes:
    length = () if body is None else (f"Content-Length: {len(body)}",)
    head = _lines(f"{first} HTTP/1.1", "Host: router", f"X-Client-Id: {TOKEN.decode()}", *fields)
    return head[:-2] + _lines(*length) + (body or b"") if length else head


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()


def _post(path: str, content: Any, *fields: str) -> bytes:
    body = content if isinstance(content, bytes) else _json(content)
    return _request(f"POST {path}", "Content-Type: application/json", *fields, body=body)


def _chunked(*pieces: bytes, trailer: bytes = b"") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n" + trailer + b"\r\n"


def _form(*parts: tuple[str, bytes]) -> bytes:
    body = b"".join(
        b"--edge\r\nContent-Disposition: form-data; name=%b\r\n\r\n%b\r\n" % (name.encode(), value)
        for name, value in parts
    )
    return body + b"--edge--\r\n"


def frame(opcode: int, payload: bytes, *, last: bool = True, masked: bool = True) -> bytes:
    """A WebSocket frame; the mask is nought, so that the payload can be read."""
    size = len(payload)
    short = size if size < 126 else 126
    head = bytes([opcode | (0x80 if last else 0), short | (0x80 if masked else 0)])
    return head + (size.to_bytes(2, "big") if short == 126 else b"") + b"\0" * 4 * masked + payload


_NAME = TOKEN.decode()
_PROMPT = {"model": "m", "prompt": f"a kite {_NAME}", "size": "64x64", "num_inference_steps": 2}
_UPGRADE = (
    "Connection: keep-alive, Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Protocol: a, b",
    "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
    f"Sec-WebSocket-Key: {KEY.decode()}",
    "Sec-WebSocket-Version: 13",
)
_SESSION = _request("GET /v1/realtime_video/generate", *_UPGRADE)
_IMAGES = "/v1/images/generations"
_EDIT = _form(
    ("image", b"\x89PNG\xff\x00" + TOKEN), ("model", b"m"), ("prompt", b"p " + TOKEN), ("n", b"2")
)

# A request by a client, in the pieces that it waits between.
REQUESTS: tuple[tuple[bytes, ...], ...] = (
    (_post(_IMAGES, _PROMPT),),
    (_post(_IMAGES, _PROMPT, "Connection: close"),),
    (_post(_IMAGES, {**_PROMPT, "image": "A" * 3000}, "Accept-Encoding: gzip"),),
    (_post(_IMAGES, _PROMPT, "X-Min-Weight-Version: 0", "X-Request-Id: r-1"),),
    (
        _request(f"POST {_IMAGES}", "Transfer-Encoding: chunked", "Content-Type: application/json")
        + _chunked(_json(_PROMPT)[:30], _json(_PROMPT)[30:], trailer=b"X-Sum: 1\r\n"),
    ),
    (
        _request(f"POST {_IMAGES}", "Expect: 100-continue", "Content-Length: 14"),
        b'{"prompt": "a"',
    ),
    (
        _request(
            "POST /v1/images/edits", "Content-Type: multipart/form-data; boundary=edge", body=_EDIT
        ),
    ),
    (_post("/v1/videos", {**_PROMPT, "seconds": 4}),),
    (_request("GET /v1/videos?limit=2&order=asc"),),
    (_request(f"GET /v1/videos?id={_NAME}"),),
    (_request(f"GET /v1/videos/{_NAME}"),),
    (_request(f"GET /v1/videos/{_NAME}/content", "Range: bytes=0-9"),),
    (_request(f"DELETE /v1/videos/{_NAME}"),),
    (_request(f"GET /v1/images/{_NAME}/content"),),
    (_post("/v1/meshes", _PROMPT),),
    (_post("/rollout/generate", {**_PROMPT, "rollout": True}),),
    (_post("/v1/diffusion/generate", _PROMPT, "Connection: close"),),
    (_request(f"GET /unheard/of/{_NAME}?q=%00%ff"),),
    (_request(f"PATCH /unheard%0d%0a/{_NAME}", body=b"x" * 20),),
    (_request(f"HEAD /unheard/of/{_NAME}"),),
    (_request(f"HEAD {_IMAGES}", "Transfer-Encoding: chunked") + b"zz\r\n",),
    (_request("OPTIONS *"),),
    (_request("GET http://router/health"),),
    (_request("GET /health"),),
    (_request("HEAD /health"),),
    (_request("GET /workers"),),
    (_request(f"GET /workers/{_NAME}"),),
    (_request(f"GET /workers/{_NAME}/logs?tail=3"),),
    (_request("GET /queue"),),
    (_request("GET /weights"),),
    (_request("GET /v1/models"),),
    (_request(f"GET /v1/models/{_NAME}"),),
    (_request("GET /v1/list_loras"),),
    (_request("GET /live", "Connection: close"),),
    (_request("GET /live") * 3 + _post(_IMAGES, _PROMPT) + _request("GET /queue"),),
    (_post(_IMAGES, _PROMPT) + _post("/v1/videos", _PROMPT),),
    (_post(_IMAGES, _PROMPT), _post(_IMAGES, _PROMPT, "Connection: close")),
    (_lines("GET /live HTTP/1.0"),),
    (
        _SESSION,
        frame(1, b"text " + TOKEN) + frame(2, b"\0\xff" + TOKEN),
        frame(9, b"ping") + frame(1, b"he", last=False) + frame(0, b"llo") + frame(8, b"\x03\xe8"),
    ),
    (
        _SESSION,
        # "Hello" twice, deflated (RFC 7692 section 7.2.3.2).
        frame(0x41, b"\xf2\x48\xcd\xc9\xc9\x07\x00") + frame(0x41, b"\xf2\x00\x11\x00\x00"),
        frame(8, b"\x03\xf3bye"),
    ),
    (_SESSION, frame(1, b"caf\xc3\xa9" * 60), frame(10, b"") + frame(8, b"")),
    (_SESSION + frame(1, b"too early"),),
)

# Those that reach a worker as they are.
RELAYED = tuple(
    pieces
    for pieces in REQUESTS
    if pieces[0].startswith((b"POST ", b"PATCH ", b"GET /unheard", b"HEAD /unheard"))
)

_TENSORS = {"serialized_named_tensors": ["QUJD"], "load_format": None, "target_modules": ["m"]}

# Changes of workers, weights and memory.
CHANGES: tuple[tuple[bytes, ...], ...] = (
    (_post("/update_weights_from_disk", {"model_path": f"/m/{_NAME}"}),),
    (_post("/update_weights_from_tensor", _TENSORS),),
    (_post("/get_weights_checksum", {"module_names": ["m"]}),),
    (_post("/v1/set_lora", {"lora_nickname": _NAME, "lora_path": "/l", "target": "all"}),),
    (_post("/v1/merge_lora_weights", {"target": "all"}),),
    (_post("/v1/unmerge_lora_weights", {}),),
    (_post("/release_memory_occupation", {}),),
    (_post("/resume_memory_occupation", {}),),
    (_post("/weights", {"version": 3}),),
    (_post("/weights/begin", {"timeout": 0.3}),),
    (_post("/weights/commit", {"txn": _NAME}),),
    (_post("/weights/abort", {"txn": _NAME, "touched": []}),),
    (_post("/weights/sync?timeout=0.2", {"version": 1}),),
    (_post("/workers", {"url": "http://127.0.0.1:1", "worker_type": "regular", "extra": [1]}),),
    (_post("/workers", {"url": f"http://{_NAME}.invalid:30000"}),),
    (_post("/add_worker?url=http://127.0.0.1:2", {}),),
    (_post("/remove_worker?url=http://127.0.0.1:2", {}),),
    (_request("DELETE /workers/127.0.0.1:1?drain=true"),),
    (
        _request(
            "PUT /workers/127.0.0.1:1", "Content-Type: application/json", body=b'{"is_dead": true}'
        ),
    ),
    (_request("GET /list_workers"),),
    (_request(f"GET /workers/{_NAME}/logs"),),
    (_post("/workers/127.0.0.1:1/restart", {}),),
    (_post("/launcher/scale", {"launcher": "x", "num_workers": 1}),),
    (_post("/config/reload", {}),),
    (_request("GET /drain"),),
)


def _answer(status: str, *fields: str, body: bytes = b"") -> bytes:
    return _lines(f"HTTP/1.1 {status}", *fields, f"Content-Length: {len(body)}") + body


_IMAGE = _json({"id": _NAME, "created": 1, "data": [{"url": f"/v1/images/{_NAME}/content"}]})
_JOB = _json({"id": _NAME, "object": "video", "status": "queued", "progress": 0})
_ACCEPTED = _lines(
    "HTTP/1.1 101 Switching Protocols",
    "Upgrade: websocket",
    "Connection: Upgrade",
    f"Sec-WebSocket-Accept: {ACCEPT.decode()}",
    f"X-Session: {_NAME}",
)

# A worker's answer to what is relayed, in the pieces that it pauses between.
ANSWERS: tuple[tuple[bytes, ...], ...] = (
    (_answer("200 OK", "Content-Type: application/json", body=_IMAGE),),
    (_answer("200 OK", "Content-Type: application/json", "Connection: close", body=_IMAGE),),
    (_answer("200 OK", "Content-Encoding: gzip", body=gzip.compress(_JOB, mtime=0)),),
    (_answer("200 OK", "Content-Type: application/json", body=_JOB),),
    (_answer("200 OK", body=_JOB.replace(b"queued", b"completed")),),
    (_lines("HTTP/1.1 200 OK", "Transfer-Encoding: chunked"), _chunked(_IMAGE[:9], _IMAGE[9:])),
    (
        _lines("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "Trailer: x")
        + _chunked(TOKEN, b"y" * 3000, trailer=b"x: y\r\n"),
    ),
    (_lines("HTTP/1.1 200 OK", "X-T: 1") + b"until the end " + TOKEN, TOKEN),
    (_lines("HTTP/1.0 200 OK") + TOKEN,),
    (_lines("HTTP/1.1 100 Continue") + _answer("201 Created", body=TOKEN),),
    (
        _lines("HTTP/1.1 103 Early Hints", "Link: </a>"),
        _lines("HTTP/1.1 102 Processing") + _answer("200 OK", body=TOKEN),
    ),
    (_lines("HTTP/1.1 204 No Content", f"X-T: {_NAME}"),),
    (_lines("HTTP/1.1 304 Not Modified", 'ETag: "x"', "Content-Length: 30"),),
    (
        _lines("HTTP/1.1 200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked")
        + _chunked(b"data: 1\n\n")[:-5],
        _chunked(b"data: %b\n\n" % TOKEN),
    ),
    (_answer("302 Found", f"Location: http://worker/{_NAME}", "Set-Cookie: a=\xff"),),
    (_answer("400 Bad Request", body=b'{"detail": "no"}'),),
    (_answer("404 Not Found", body=b"{}"),),
    (_answer("429 Too Many Requests", "Retry-After: 0", body=b"{}"),),
    (_answer("500 Internal Server Error", body=TOKEN),),
    (_answer("503 Service Unavailable", "Retry-After: 0"),),
    (_answer("502 Bad Gateway", body=b"<html>"),),
    (_answer("200 OK", *(f"X-{n}: {_NAME}" for n in range(40)), body=_IMAGE),),
    (_ACCEPTED, frame(1, b"hello " + TOKEN, masked=False), frame(8, b"\x03\xe8", masked=False)),
    (_ACCEPTED + frame(1, b"at once " + TOKEN, masked=False), frame(8, b"", masked=False)),
    (
        _ACCEPTED,
        frame(2, b"\0" * 200 + TOKEN, masked=False) + frame(9, b"p", masked=False),
        frame(1, b"a", last=False, masked=False) + frame(0, b"b", masked=False),
    ),
    (_lines("HTTP/1.1 103 Early Hints") + _ACCEPTED + frame(1, TOKEN, masked=False),),
    (
        _ACCEPTED[:-2] + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
        frame(0x41, b"\xf2\x48\xcd\xc9\xc9\x07\x00", masked=False),
    ),
    (_ACCEPTED[:-2] + b"Sec-WebSocket-Protocol: a\r\n\r\n" + frame(8, b"", masked=False),),
    (_answer("403 Forbidden", "Content-Type: text/plain", body=b"no session " + TOKEN),),
)

_LARGE = b"x" * 70_000  # more than is read at once

# Answers after which a connection is kept; a second one behind any of them spoils it.
KEPT: tuple[bytes, ...] = (
    _answer("200 OK", "Content-Type: application/json", body=_IMAGE),
    _answer("200 OK", body=_JOB.replace(b"queued", b"completed")),
    _answer("200 OK", body=_LARGE + TOKEN),
    _answer("200 OK"),
    _answer("404 Not Found", body=TOKEN),
    _lines("HTTP/1.1 204 No Content", f"X-T: {_NAME}"),
    _lines("HTTP/1.1 304 Not Modified", f"X-T: {_NAME}"),
    _lines("HTTP/1.1 200 OK", "Transfer-Encoding: chunked") + _chunked(_IMAGE, b"\n"),
    _lines("HTTP/1.1 200 OK", "Transfer-Encoding: chunked") + _chunked(_LARGE, TOKEN),
)

# What a sound worker answers to the router's own questions, by path.
CONTROL: dict[bytes, bytes] = {
    b"/health": _answer("200 OK", body=b'{"status": "ok"}'),
    b"/v1/models": _answer(
        "200 OK",
        body=_json({"data": [{"id": "m", "supported_task_types": ["TI2I", "T2V", "I2M"]}]}),
    ),
    b"/server_info": _answer("200 OK", body=b'{"model_path": "m", "dp_size": 1}'),
    b"/model_info": _answer("200 OK", body=b'{"task_type": "TI2I"}'),
    b"/v1/list_loras": _answer("200 OK", body=b'{"loaded_adapters": [], "active": []}'),
    b"/v1/videos": _answer("200 OK", body=_json({"object": "list", "data": [{"id": "v"}]})),
    b"": _answer("200 OK", body=b'{"success": true, "message": "done", "status": "completed"}'),
}
