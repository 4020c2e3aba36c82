from __future__ import annotations

import pytest

from router.launch.base import WorkerPorts
from router.launch.masking import masked
from router.launch.records import LaunchRecord


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("sglang serve --api-key hunter2 --port 1", "sglang serve --api-key *** --port 1"),
        ("sglang --admin-api-key=hunter2", "sglang --admin-api-key=***"),
        ("sglang --admin_api_key hunter2", "sglang --admin_api_key ***"),
        ("env HF_TOKEN=hunter2 AWS_SECRET_ACCESS_KEY=hunter2 sglang", None),
        ("sglang --hf-token hunter2", "sglang --hf-token ***"),
        ("sglang --proxy http://me:hunter2@host/x", "sglang --proxy http://***@host/x"),
    ],
)
def test_a_secret_is_masked(command: str, shown: str | None) -> None:
    words = masked(command.split())
    assert "hunter2" not in " ".join(words)
    assert len(words) == len(command.split())
    if shown is not None:
        assert words == tuple(shown.split())


@pytest.mark.parametrize(
    "word",
    [
        "HF_TOKEN=hunter2 exec sglang serve",
        "exec sglang --api-key hunter2 --port 1",
        'exec sglang --api-key "hunter2"',
        '{"api_key": "hunter2", "port": 1}',
        "api_key: hunter2",
    ],
)
def test_a_secret_within_one_word_is_masked(word: str) -> None:
    assert "hunter2" not in " ".join(masked(["sh", "-c", word]))


@pytest.mark.parametrize(
    "command",
    [
        "sglang serve --model-path m --port 30000",
        "sglang --tokenizer-path t --max-tokens 5 --ssl-keyfile k.pem",
        "sglang --api-key-file /run/key --ssl-key-path k",
        "sglang --use-key --port 30000",
        "sglang --monkey=1 --keyboard 2 KEYS=3",
        "python -m x http://host:1/a@b",
    ],
)
def test_the_rest_is_shown(command: str) -> None:
    assert masked(command.split()) == tuple(command.split())


def test_what_is_stored_of_a_launch_holds_no_secret() -> None:
    command = ("sglang", "--api-key", "hunter2")
    ports = WorkerPorts(10090, 30005, 5555)
    record = LaunchRecord("l", 0, "l-0", "local", "t", "f", command, ports)
    assert "hunter2" not in repr(record)
