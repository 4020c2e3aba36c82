"""Who may have a request: one worker after the other, or several that have parts of it."""

from __future__ import annotations

import trio

from router.front.record import ExchangeRecord


def test_a_request_is_delivered_while_any_worker_may_have_it() -> None:
    async def main() -> None:
        record = ExchangeRecord("id", "POST", "/x")
        record.deliver(3)
        assert record.delivered is not None
        record.take_back()
        assert record.delivered is None
        record.deliver(4)
        assert record.incarnation == 4
        record.deliver(5)
        assert record.incarnation is None  # no longer certain
        record.take_back()
        assert record.delivered is not None
        record.take_back()
        assert record.delivered is None

    trio.run(main)
