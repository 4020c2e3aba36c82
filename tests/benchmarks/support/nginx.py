"""nginx as the upstream and as the proxy to compare with: one process each, nothing logged."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from support.upstream import SELF, TINY

BINARY = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))

_FRAME = """
daemon off;
master_process off;
worker_rlimit_nofile 20000;
pid {folder}/{name}.pid;
error_log {folder}/{name}.log;
events {{ worker_connections 10000; }}
http {{
    access_log off;
    client_body_temp_path {folder}/{name}.client;
    proxy_temp_path {folder}/{name}.proxy;
    fastcgi_temp_path {folder}/{name}.fastcgi;
    uwsgi_temp_path {folder}/{name}.uwsgi;
    scgi_temp_path {folder}/{name}.scgi;
    sendfile on;
    tcp_nodelay on;
    keepalive_timeout 1h;
    client_header_timeout 1h;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    {content}
}}
"""

_UPSTREAM = """
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        default_type application/json;
        {answers}
        location /bodies/ {{ root {folder}; default_type application/octet-stream; }}
        location / {{ return 200 '{tiny}'; }}
    }}
"""

# As people set it up for streaming: upstream connections kept, nothing spooled to files.
_PROXY = """
    upstream worker {{ server 127.0.0.1:{worker}; keepalive 512; keepalive_requests 1000000000; }}
    upstream sink {{ server 127.0.0.1:{sink}; keepalive 16; }}
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_max_temp_file_size 0;
    proxy_request_buffering off;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location /upload {{ proxy_pass http://sink; }}
        location / {{ proxy_pass http://worker; }}
    }}
"""


def upstream_command(folder: Path, port: int) -> list[str]:
    """The command of an nginx that plays the worker; `folder` has `bodies/`."""
    answers = "\n        ".join(
        f"location = {path} {{ return 200 '{json.dumps(content)}'; }}"
        for path, content in SELF.items()
    )
    content = _UPSTREAM.format(port=port, folder=folder, answers=answers, tiny=TINY.decode())
    return _command(folder, "upstream", content)


def proxy_command(folder: Path, port: int, *, worker: int, sink: int) -> list[str]:
    """The command of an nginx that proxies to those two ports; uploads go to `sink`."""
    return _command(folder, "proxy", _PROXY.format(port=port, worker=worker, sink=sink))


def _command(folder: Path, name: str, content: str) -> list[str]:
    assert BINARY is not None
    config = folder / f"{name}.conf"
    text = _FRAME.format(folder=folder, name=name, content=content)
    if os.geteuid() == 0:
        text = "user root;\n" + text
    config.write_text(text, encoding="utf-8")
    log = str(folder / f"{name}.log")
    return [BINARY, "-p", str(folder), "-e", log, "-c", str(config)]
