"""HTTP/1.1 on the loopback interface, as well as some knobs let it work."""

import asyncio
import contextlib
import dataclasses
import json
import os
import random
import signal
import urllib.parse
from typing import Any

from benchmarks.data.bucket_emulator.api import Answer, Bucket, Request, as_json, refusal
from benchmarks.data.bucket_emulator.store import Refused

FAULTS = (429, 500, 502, 503, "reset", "cut")  # what `errors` draws from
CONTROL = "/emulator"  # GET: the counters; POST: other knobs
_WITHOUT_BODY = (204, 304)
_PART = 2**18  # bytes that are sent before "cut" closes the connection, at most


def _knob(default: float, meaning: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": meaning})


@dataclasses.dataclass
class Knobs:
    """How well the network and the bucket work."""

    latency_ms: float = _knob(0.0, "milliseconds before each answer")
    errors: float = _knob(0.0, "share of the requests that meet a fault")
    status: int = _knob(0, "HTTP status of these, such as 403; 0 draws one of several faults")
    kill: int = _knob(0, "number of a process that a request kills, as kill -9 does; 0: none")
    kill_at: int = _knob(0, "number of this request")
    kill_when_done: int = _knob(0, "1: it is fulfilled before, but not answered")
    seed: int = _knob(0, "of the faults")


class Server:
    """Speaks HTTP/1.1 on loopback for a bucket, as well as its knobs let it."""

    def __init__(self, bucket: Bucket, knobs: Knobs):
        self.bucket, self.knobs = bucket, knobs
        self.counts = {"requests": 0, "faults": 0, "bytes": 0, "in_flight": 0, "most_in_flight": 0}
        self._random = random.Random(knobs.seed)

    async def serve(self, port: int) -> None:
        """Serves until it is cancelled; says where."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", port, limit=2**20)
        print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
        async with server:
            await server.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has gone
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answers one request; False if the connection is to be closed."""
        request = await self._read(reader, writer)
        if request.path == CONTROL:
            if request.method == "POST":
                self.knobs = dataclasses.replace(self.knobs, **json.loads(request.body))
                self._random = random.Random(self.knobs.seed)
                self.counts |= {"requests": 0, "faults": 0, "bytes": 0, "most_in_flight": 0}
            await self._write(writer, as_json(self.counts))
            return True
        self.counts["requests"] += 1
        self.counts["in_flight"] += 1
        self.counts["most_in_flight"] = max(self.counts["most_in_flight"], self.counts["in_flight"])
        try:
            answer, cut = await self._answer(request, writer)
        finally:
            # Before the answer is sent: its reader may ask for more before the sending is over.
            self.counts["in_flight"] -= 1
        if answer is None:
            return False
        self.counts["bytes"] += len(answer.body)
        await self._write(writer, answer, cut)
        return not cut

    async def _answer(
        self, request: Request, writer: asyncio.StreamWriter
    ) -> tuple[Answer | None, bool]:
        """The answer, and whether only a part of it is sent; None ends the connection."""
        if self.knobs.latency_ms:
            await asyncio.sleep(self.knobs.latency_ms / 1000)
        fault: int | str = 0
        if self._random.random() < self.knobs.errors:
            fault = self.knobs.status or self._random.choice(FAULTS)
            self.counts["faults"] += 1
        if fault == "reset":
            writer.transport.abort()
            return None, False
        last = self.knobs.kill and self.counts["requests"] >= self.knobs.kill_at
        if last and not self.knobs.kill_when_done:
            self._kill()
            return None, False
        answer = self.bucket.answer(request) if not isinstance(fault, int) or not fault else None
        if last:
            self._kill()
            return None, False
        if answer is None:
            answer = refusal(Refused(int(fault), "a fault of the emulator"))
        return answer, fault == "cut"

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.knobs.kill, signal.SIGKILL)
        self.knobs.kill = 0

    @staticmethod
    async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        method, target, _ = first.split(" ")
        pairs = (line.partition(":") for line in lines if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = b""
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await reader.readline()).split(b";")[0], 16):
                body += await reader.readexactly(size)
                await reader.readline()
            await reader.readline()
        else:
            body = await reader.readexactly(int(headers.get("content-length", 0)))
        url = urllib.parse.urlsplit(target)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        return Request(method, url.path, query, headers, body)

    @staticmethod
    async def _write(writer: asyncio.StreamWriter, answer: Answer, cut: bool = False) -> None:
        lines, body = [f"HTTP/1.1 {answer.status} X"], answer.body
        lines += [f"{name}: {value}" for name, value in answer.headers]
        if answer.status in _WITHOUT_BODY:
            body = b""  # a client would take it for the beginning of the next answer
        else:
            lines.append(f"content-length: {len(body)}")
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        writer.write(body[: min(_PART, len(body) // 2)] if cut else body)
        await writer.drain()
