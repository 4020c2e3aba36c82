"""How long a generation takes: pixels x steps x frames x outputs / throughput.

The throughputs make the demo brisk: 1024x1024 in 28 steps takes 0.7 s, four seconds of 832x480
video in 50 steps 2.4 s.
"""

from __future__ import annotations

from attrs import frozen

_PER_SECOND = {"IMAGE": 42e6, "VIDEO": 800e6, "MESH": 7e6, "ACTION": 42e6}
_OVERHEAD_SECONDS = 0.01


@frozen
class Shape:
    """What a generation costs, and what may run together with it: equal shapes."""

    output: str
    """`IMAGE`, `VIDEO`, `MESH` or `ACTION`."""
    width: int
    height: int
    steps: int
    frames: int = 1

    def seconds(self, outputs: int) -> float:
        """At speed 1 and time scale 1."""
        work = self.width * self.height * self.steps * self.frames * outputs
        return _OVERHEAD_SECONDS + work / _PER_SECOND[self.output]
