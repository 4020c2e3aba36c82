"""Jobs of a worker: kept in memory, listed by the second of their creation, lost with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import define, field

from .messages import wall_seconds
from .scheduler import Work

_VIDEO_FIELDS = (
    "id",
    "object",
    "model",
    "status",
    "progress",
    "created_at",
    "size",
    "seconds",
    "quality",
    "url",
    "urls",
    "remixed_from_video_id",
    "completed_at",
    "expires_at",
    "error",
    "file_path",
    "file_paths",
    "num_outputs",
    "peak_memory_mb",
    "inference_time_s",
    "revised_prompt",
    "action",
    "lidar",
)
_MESH_FIELDS = (
    "id",
    "object",
    "model",
    "status",
    "progress",
    "created_at",
    "format",
    "url",
    "completed_at",
    "expires_at",
    "error",
    "file_path",
    "file_size_bytes",
    "peak_memory_mb",
    "inference_time_s",
)


@define(eq=False)
class Job:
    """One video or mesh job. `render` makes the file of its i-th output."""

    id: str
    kind: str
    fields: dict[str, Any]
    work: Work
    outputs: int
    render: Callable[[int], bytes]
    suffix: str
    created_at: int = field(factory=wall_seconds)

    @property
    def status(self) -> str:
        if self.work.finished.is_set():
            return "failed" if self.work.error else "completed"
        return "queued" if self.work.entry.start is None else "in_progress"

    @property
    def paths(self) -> list[str]:
        """Where the files would be on a real worker."""
        stem = self.fields["file_path"].removesuffix(self.suffix)
        if self.outputs == 1:
            return [f"{stem}{self.suffix}"]
        return [f"{stem}_{i}{self.suffix}" for i in range(self.outputs)]

    def as_json(self, **changes: Any) -> dict[str, Any]:
        """The job as its endpoint tells it."""
        names = _VIDEO_FIELDS if self.kind == "video" else _MESH_FIELDS
        told: dict[str, Any] = dict.fromkeys(names)
        told.update(self.fields)
        told.update(id=self.id, object=self.kind, created_at=self.created_at, status=self.status)
        told["progress"] = min(99, int(100 * self.work.done_share))
        entry = self.work.entry
        if self.status == "completed":
            told.update(progress=100, completed_at=self.work.finished_at)
            told["inference_time_s"] = entry.seconds
            told["file_path"] = self.paths[0]
            if self.kind == "video":
                told.update(
                    urls=[None] * self.outputs, file_paths=self.paths, num_outputs=self.outputs
                )
        elif self.status == "failed":
            told["error"] = {
                "message": f"Model generation failed. Error from scheduler: {self.work.error}"
            }
            told.update(file_path=None, progress=min(99, int(100 * self.work.reached)))
        told.update(changes)
        return told


@define(eq=False)
class Jobs:
    """The jobs of one kind."""

    _jobs: dict[str, Job] = field(factory=dict)

    def add(self, job: Job) -> None:
        self._jobs[job.id] = job

    def get(self, id: str) -> Job | None:
        return self._jobs.get(id)

    def pop(self, id: str) -> Job | None:
        """Forgets the job; its work goes on."""
        return self._jobs.pop(id, None)

    def page(self, after: str | None, limit: int, order: str) -> dict[str, Any]:
        """A page in order of the second of creation. An unknown `after` gives an empty page."""
        jobs = sorted(self._jobs.values(), key=lambda job: job.created_at, reverse=order == "desc")
        if after is not None:
            place = next((i for i, job in enumerate(jobs) if job.id == after), len(jobs))
            jobs = jobs[place + 1 :]
        page = [job.as_json() for job in jobs[:limit]]
        return {
            "data": page,
            "object": "list",
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(jobs) > limit,
        }
