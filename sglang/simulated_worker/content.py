"""Files as Starlette's FileResponse sends them: ranges, etag, attachment."""

from __future__ import annotations

import hashlib
import re
import secrets

from .exchange import Exchange
from .messages import Headers, Response, http_date, response, slices, text_response


def file_response(
    exchange: Exchange, data: bytes, media_type: str, filename: str, created: int
) -> Response:
    """The whole file, or the ranges that were asked for (206, 416, or 400 for nonsense)."""
    etag = f'"{hashlib.md5(f"{filename}-{created}".encode()).hexdigest()}"'
    headers: Headers = [
        (b"content-type", media_type.encode()),
        (b"accept-ranges", b"bytes"),
        (b"content-disposition", f'attachment; filename="{filename}"'.encode()),
        (b"content-length", str(len(data)).encode()),
        (b"last-modified", http_date(created)),
        (b"etag", etag.encode()),
    ]
    wanted = exchange.header(b"range")
    condition = exchange.header(b"if-range")
    if not wanted or (condition and condition not in (etag, http_date(created).decode())):
        return _sent(200, headers, data)
    try:
        ranges = _ranges(wanted, len(data))
    except ValueError as error:
        return text_response(str(error), 400)
    if ranges is None:
        place = (b"content-range", f"bytes */{len(data)}".encode())
        return response(b"", "text/plain; charset=utf-8", 416, place)
    if len(ranges) == 1:
        start, end = ranges[0]
        headers[3] = (b"content-length", str(end - start).encode())
        headers.append((b"content-range", f"bytes {start}-{end - 1}/{len(data)}".encode()))
        return _sent(206, headers, data[start:end])
    boundary = secrets.token_hex(13)
    body = (
        b"".join(
            f"--{boundary}\r\nContent-Type: {media_type}\r\n"
            f"Content-Range: bytes {start}-{end - 1}/{len(data)}\r\n\r\n".encode()
            + data[start:end]
            + b"\r\n"
            for start, end in ranges
        )
        + f"--{boundary}--".encode()
    )
    headers[0] = (b"content-type", f"multipart/byteranges; boundary={boundary}".encode())
    headers[3] = (b"content-length", str(len(body)).encode())
    return _sent(206, headers, body)


def _ranges(header: str, size: int) -> list[tuple[int, int]] | None:
    """Start and end (exclusive) of each range; None if none fits. Raises ValueError."""
    unit, equals, text = header.partition("=")
    if not equals:
        raise ValueError("Malformed range header.")
    if unit.strip().lower() != "bytes":
        raise ValueError("Only support bytes range")
    found: list[tuple[int, int]] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d*)-(\d*)\s*", part)
        if match is None or not (match[1] or match[2]):
            continue
        if match[1]:
            start, end = int(match[1]), int(match[2]) + 1 if match[2] else size
        else:
            start, end = max(0, size - int(match[2])), size
        found.append((start, min(end, size) if start < size else end))
    if not found:
        raise ValueError("Range header: range must be requested")
    if any(start >= size for start, _ in found):
        return None
    if any(start >= end for start, end in found):
        raise ValueError("Range header: start must be less than end")
    return found


def _sent(status: int, headers: Headers, data: bytes) -> Response:
    return Response(status, headers, pieces=lambda: slices(data))
