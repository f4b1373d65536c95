"""The edge's routes: health, metrics, whole images by HTTP, split streams by WebSocket. docs/serving.md lists them."""

import logging
import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from aecnn_deploy.errors import RequestFailedError
from aecnn_deploy.runtimes.edge_models import BAD_IMAGE
from aecnn_deploy.runtimes.edge_page import status_routes
from aecnn_deploy.runtimes.edge_service import TOO_LARGE, TOO_SLOW, Caller, EdgeService
from aecnn_deploy.runtimes.edge_stream import Stream, caller_of
from aecnn_deploy.runtimes.edge_upload import upload, upload_place
from aecnn_deploy.runtimes.edge_view import FULL, Peer
from aecnn_deploy.runtimes.oip_app import open_inference_routes
from aecnn_deploy.wire import FailureCode

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.websockets import WebSocket

logger = logging.getLogger("aecnn_deploy.edge")

STREAM_PATH = "/v1/stream"
CLASSIFY_PATH = "/v1/classify"

_STATUS = {
    BAD_IMAGE: 400,
    TOO_LARGE: 413,
    TOO_SLOW: 408,
    FailureCode.DRAINING: 503,
    FailureCode.OVERLOADED: 503,
}


def build_app(service: EdgeService, more: Iterable[Any] = ()) -> "Starlette":
    """The ASGI application over ``service``, with ``more`` routes."""
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route, WebSocketRoute

    async def healthz(_: "Request") -> "Response":
        return JSONResponse({"alive": True})

    async def readyz(_: "Request") -> "Response":
        state = service.state
        return JSONResponse({"state": state, "bundle_id": service.bundle.id}, 200 if state == "ready" else 503)

    async def metrics(_: "Request") -> "Response":
        page, content_type = service.observer.metrics.page()
        return Response(page, media_type=None, headers={"content-type": content_type})

    async def classify(request: "Request") -> "Response":
        received_s = time.perf_counter()
        host = request.client.host if request.client else ""
        peer, caller = service.observer.visitor(host), caller_of(request.scope, host)
        try:
            service.check_open(caller, service.current.full)
            with upload_place(service):
                content = await upload(service, request, service.settings.max_image_bytes, "send a smaller image")
            if not content:
                raise RequestFailedError(BAD_IMAGE, "the body is empty; POST an image file's bytes")
            service.observer.received(FULL, len(content))
            return await _classified(service, content, received_s, caller, peer)
        except RequestFailedError as exc:
            service.observer.failed(FULL, exc.code, peer, exc.reason)
            return _failure(exc)
        except ClientDisconnect:
            service.observer.failed(FULL, "gone", peer)
            return Response(status_code=499)  # nobody reads it
        except Exception as exc:  # a defect of ours: this request fails, the server goes on
            logger.exception("POST %s failed", CLASSIFY_PATH)
            service.observer.failed(FULL, FailureCode.INTERNAL, peer, type(exc).__name__)
            return _failure(RequestFailedError(FailureCode.INTERNAL, type(exc).__name__))

    async def stream(websocket: "WebSocket") -> None:
        await Stream(service, websocket).run()

    return Starlette(
        routes=[
            *open_inference_routes(service),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            *status_routes(service.observer),
            Route(CLASSIFY_PATH, classify, methods=["POST"]),
            WebSocketRoute(STREAM_PATH, stream),
            *more,
        ]
    )


async def _classified(
    service: EdgeService, content: bytes, received_s: float, caller: Caller, peer: Peer
) -> "JSONResponse":
    from starlette.responses import JSONResponse

    bundle = service.bundle
    answer, total_ms = await service.classify(content, received_s, caller)
    labels = bundle.manifest.labels
    response = JSONResponse(
        {
            "bundle_id": bundle.id,
            "path": FULL,
            "top": [{"index": index, "label": labels[index], "score": score} for index, score in answer.top],
            "decode_ms": round(answer.decode_ms, 3),
            "queue_ms": round(answer.queue_ms, 3),
            "full_ms": round(answer.run_ms, 3),
            "total_ms": round(total_ms, 3),
        }
    )
    stages_ms = {"queue": answer.queue_ms, "decode": answer.decode_ms, "full": answer.run_ms, "total": total_ms}
    sent_bytes = len(response.body)
    service.observer.answered(FULL, FULL, peer, stages_ms, answer.batch, sent_bytes, received_bytes=len(content))
    return response


def _failure(error: RequestFailedError) -> "JSONResponse":
    from starlette.responses import JSONResponse

    status = _STATUS.get(error.code, 500)
    headers = {"retry-after": str(math.ceil(error.retry_after_s or 1))} if status == 503 else {}
    if error.code in (TOO_LARGE, TOO_SLOW):
        headers["connection"] = "close"  # the rest of the body is not read
    document: dict[str, object] = {"code": error.code, "reason": error.reason}
    if error.retry_after_s is not None:
        document["retry_after_s"] = error.retry_after_s
    return JSONResponse({"error": document}, status, headers)
