"""Objects in S3: uploads in parts straight from the buffers, a few parts at a time."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

from tasks.artifacts.backend import Backend, Buffer, Persist

PART_SIZE = 16 * 2**20
MAX_PARTS = 10_000
PARALLEL_PARTS = 4
STALE_AFTER = timedelta(days=1)


class S3Backend(Backend):
    """An object appears when its last part is there and the upload is completed.

    Each request is tried again by itself, so that a fault late in a large upload costs one part.
    """

    stale_after = STALE_AFTER

    def write(self, path: str, buffers: Sequence[Buffer], persist: Persist) -> None:
        where = self._where(path)
        size = sum(memoryview(buffer).nbytes for buffer in buffers)
        if size <= PART_SIZE:
            persist(lambda: self.fs.call_s3("put_object", **where, Body=b"".join(buffers)))
            return
        where["UploadId"] = persist(lambda: self.fs.call_s3("create_multipart_upload", **where))["UploadId"]
        try:
            parts = self._upload_parts(where, buffers, size, persist)
            self._complete(path, where, parts, size, persist)
        except BaseException:
            with contextlib.suppress(Exception):
                self.fs.call_s3("abort_multipart_upload", **where)
            raise

    def remove_stale(self, folder: str, persist: Persist) -> None:
        """Abort uploads below a folder that a killed writer began more than ``stale_after`` ago.

        They are invisible, but their parts are stored and paid for.
        """
        bucket, prefix, _ = self.fs.split_path(folder)
        where = {"Bucket": bucket, "Prefix": prefix}
        with contextlib.suppress(Exception):  # a matter of tidiness: some servers or policies don't allow it
            begun = self.fs.call_s3("list_multipart_uploads", **where).get("Uploads", [])
            for upload in begun:
                if upload["Initiated"] < datetime.now(UTC) - self.stale_after:
                    which = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
                    self.fs.call_s3("abort_multipart_upload", Bucket=bucket, **which)

    def _where(self, path: str) -> dict[str, str]:
        bucket, key, _ = self.fs.split_path(path)
        return {"Bucket": bucket, "Key": key}

    def _upload_parts(
        self, where: dict[str, str], buffers: Sequence[Buffer], size: int, persist: Persist
    ) -> list[dict[str, Any]]:
        part_size = max(PART_SIZE, math.ceil(size / MAX_PARTS))

        def upload(numbered: tuple[int, list[memoryview]]) -> dict[str, Any]:
            number, part = numbered
            body = b"".join(part)
            answer = persist(lambda: self.fs.call_s3("upload_part", **where, PartNumber=number, Body=body))
            return {"PartNumber": number, "ETag": answer["ETag"]}

        with ThreadPoolExecutor(PARALLEL_PARTS) as pool:
            return list(pool.map(upload, enumerate(split_parts(buffers, part_size), start=1)))

    def _complete(
        self, path: str, where: dict[str, str], parts: list[dict[str, Any]], size: int, persist: Persist
    ) -> None:
        complete = {**where, "MultipartUpload": {"Parts": parts}}
        try:
            persist(lambda: self.fs.call_s3("complete_multipart_upload", **complete))
        except FileNotFoundError:
            # The upload is gone: an earlier attempt completed it and only its answer was lost.
            if persist(lambda: self.fs.info(path, refresh=True))["size"] != size:
                raise


def split_parts(buffers: Sequence[Buffer], part_size: int) -> Iterator[list[memoryview]]:
    """The bytes of ``buffers`` as parts of ``part_size`` bytes (the last may be shorter), without copying."""
    part: list[memoryview] = []
    room = part_size
    for buffer in buffers:
        rest = memoryview(buffer).cast("B")
        while rest.nbytes:
            part.append(rest[:room])
            rest, room = rest[room:], room - part[-1].nbytes
            if room == 0:
                yield part
                part, room = [], part_size
    if part:
        yield part
