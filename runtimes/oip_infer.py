"""One inference request of the Open Inference Protocol: from the HTTP body to the models' lanes and back."""

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aecnn_deploy.runtimes.edge_jobs import Answer
from aecnn_deploy.runtimes.edge_service import EdgeService
from aecnn_deploy.runtimes.edge_stream import caller_of
from aecnn_deploy.runtimes.edge_upload import upload, upload_place
from aecnn_deploy.runtimes.edge_view import OK, SPLIT, TOTAL
from aecnn_deploy.runtimes.oip_answer import InferAnswer, answer_of
from aecnn_deploy.runtimes.oip_encoding import IDENTITY, compress, inflate
from aecnn_deploy.runtimes.oip_failures import bad_request
from aecnn_deploy.runtimes.oip_models import TensorModel
from aecnn_deploy.runtimes.oip_request import header_length, open_envelope, request_of
from aecnn_deploy.runtimes.oip_served import Catalogue, Served

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

HEADER_LENGTH = "Inference-Header-Content-Length"


class Inference:
    """One request, told to the edge's observer when it ends. A request of N rows counts as N images."""

    def __init__(self, service: EdgeService, catalogue: Catalogue, request: "Request", name: str) -> None:
        self._service, self._catalogue, self._request, self._name = service, catalogue, request, name
        self._served: Served | None = None
        self._rows = 1
        self._began_s = time.perf_counter()
        host = request.client.host if request.client else ""
        self._caller, self._peer = caller_of(request.scope, host), service.observer.visitor(host)
        if isinstance(self._caller.peer, str) and self._caller.peer:
            self._peer.introduce(self._caller.peer, verified=True, software="", trace=None)

    async def run(self) -> "Response":
        """The answer. Raises RequestFailedError; ClientDisconnect: nobody waits for it."""
        service, headers = self._service, self._request.headers
        served = self._served = self._catalogue.find(self._name)
        self._catalogue.check_loaded()
        service.check_caller(self._caller, served.lane)  # before a body is read for nothing
        json_bytes = header_length(headers.get(HEADER_LENGTH))
        body, received_bytes = await self._body(served.model)
        received_s = time.perf_counter()
        service.observer.received(served.path, received_bytes)
        envelope = open_envelope(body, json_bytes, service.settings.open_inference)
        # Again: the bundle may have been replaced while the body came, and the sender may mean the one before.
        served = self._served = self._catalogue.find(self._name, envelope.bundle_id)
        served.generation.last_used_s = time.monotonic()
        request = request_of(envelope, served.model)
        self._rows = len(request.rows)
        parse_s = time.perf_counter() - received_s
        deadline_s = None if request.timeout_s is None else received_s + request.timeout_s
        answers = await service.infer_rows(served.lane, list(request.rows), received_s, deadline_s, self._caller)
        began_s = time.perf_counter()
        answer = answer_of(request, served.model, [answer.logits for answer in answers if answer.logits is not None])
        response = _response(answer, headers.get("accept-encoding", ""))
        ended_s = time.perf_counter()
        self._observe(
            served,
            answers,
            parse_ms=parse_s * 1e3,
            write_ms=(ended_s - began_s) * 1e3,
            total_ms=(ended_s - received_s) * 1e3,
            received_bytes=received_bytes,
            sent_bytes=len(response.body),
        )
        return response

    def failed(self, code: str, reason: str = "") -> None:
        """It was not answered: tell why."""
        served, observer = self._served, self._service.observer
        name = served.model.name if served is not None else ""
        total_ms = (time.perf_counter() - self._began_s) * 1e3
        observer.metrics.open_inference(name, code)
        if served is not None:
            self._catalogue.statistics[name].failed(total_ms)
        path = served.path if served is not None else SPLIT
        for _ in range(self._rows):
            observer.failed(path, code, self._peer, reason, variant=name, total_ms=total_ms)

    async def _body(self, model: TensorModel) -> tuple[bytes, int]:
        """The body as it is without its encoding, and its size as it came."""
        service, encoding = self._service, self._request.headers.get("content-encoding", IDENTITY)
        limits = service.settings.open_inference
        limit_bytes = min(limits.max_body_bytes, limits.max_json_bytes + model.max_rows * model.item_bytes)
        with upload_place(service):
            remedy = "send fewer rows, as binary data"
            body = await upload(service, self._request, limit_bytes, remedy, limits.max_body_bytes)
            size = len(body)
            if encoding != IDENTITY:  # elsewhere: it lets go of Python's lock
                body = await asyncio.to_thread(inflate, body, encoding, limit_bytes)
        if not body:
            raise bad_request("the body is empty; POST an inference request")
        return body, size

    def _observe(
        self,
        served: Served,
        answers: Sequence[Answer],
        *,
        parse_ms: float,
        write_ms: float,
        total_ms: float,
        received_bytes: int,
        sent_bytes: int,
    ) -> None:
        name, observer = served.model.name, self._service.observer
        for answer in answers:
            stages_ms = {
                "queue": max(0.0, answer.queue_ms - parse_ms),
                "decode": parse_ms,
                "tail" if served.path == SPLIT else served.path: answer.run_ms,
                TOTAL: total_ms,
            }
            observer.answered(
                served.path,
                name,
                self._peer,
                stages_ms,
                answer.batch,
                sent_bytes // len(answers),
                received_bytes=received_bytes // len(answers),
            )
        observer.metrics.open_inference(name, OK)
        self._catalogue.statistics[name].answered(
            total_ms=total_ms,
            queue_ms=max(0.0, max(answer.queue_ms for answer in answers) - parse_ms),
            parse_ms=parse_ms,
            run_ms=max(answer.run_ms for answer in answers),
            write_ms=write_ms,
        )


def _response(answer: InferAnswer, accepted: str) -> "Response":
    from starlette.responses import Response

    headers, media_type = {}, "application/json"
    if answer.json_bytes is not None:
        headers[HEADER_LENGTH], media_type = str(answer.json_bytes), "application/octet-stream"
    body, encoding = compress(answer.body, accepted) if accepted else (answer.body, "")
    if encoding:
        headers["content-encoding"] = encoding
    return Response(body, headers=headers, media_type=media_type)
