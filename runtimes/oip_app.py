"""The Open Inference Protocol (KServe v2) over HTTP, beside the edge's own routes. docs/open-inference.md"""

import logging
import math
from typing import TYPE_CHECKING

import msgspec

from aecnn_deploy import __version__
from aecnn_deploy.errors import RequestFailedError
from aecnn_deploy.runtimes.edge_service import TOO_LARGE, TOO_SLOW, EdgeService
from aecnn_deploy.runtimes.oip_failures import STATUS, shown
from aecnn_deploy.runtimes.oip_infer import Inference
from aecnn_deploy.runtimes.oip_models import BUNDLE_KEY, VERSION, Document
from aecnn_deploy.runtimes.oip_routes import PREFIX, Call, What, call_of
from aecnn_deploy.runtimes.oip_served import Catalogue
from aecnn_deploy.wire import FailureCode

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route
    from starlette.types import Receive, Scope, Send

logger = logging.getLogger("aecnn_deploy.edge")

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "parameters", "statistics")

_GONE = "gone"  # the outcome of a request whose client left before its body was there


def open_inference_routes(service: EdgeService) -> "list[Route]":
    """Everything below ``/v2``."""
    from starlette.routing import Route

    application = OpenInference(service)
    return [Route(PREFIX, application), Route(PREFIX + "/{rest:path}", application)]


class OpenInference:
    """An ASGI application: each request has an answer, errors ``{"error": "one line"}`` with a status of ``STATUS``."""

    def __init__(self, service: EdgeService) -> None:
        self._service, self._catalogue = service, Catalogue(service)

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer one request."""
        from starlette.requests import Request

        response = await self._answer(Request(scope, receive))
        await response(scope, receive, send)

    async def _answer(self, request: "Request") -> "Response":
        try:
            call = call_of(request.scope["path"])
            if request.method not in call.methods:
                why = f"{shown(request.scope['path'])} takes {call.methods[0]}, not {shown(request.method)}"
                return _json({"error": why}, 405, {"allow": ", ".join(call.methods)})
            if call.what is What.INFER:
                return await self._infer(request, call)
            document, status = self._document(call)
        except RequestFailedError as exc:
            return _failure(exc)
        except Exception as exc:  # a defect of ours: this request fails, the server goes on
            return _defect(exc)
        return _json(document, status)

    async def _infer(self, request: "Request", call: Call) -> "Response":
        from starlette.requests import ClientDisconnect
        from starlette.responses import Response

        inference = Inference(self._service, self._catalogue, request, call.model)
        try:
            return await inference.run()
        except RequestFailedError as exc:
            inference.failed(exc.code, exc.reason)
            return _failure(exc)
        except ClientDisconnect:
            inference.failed(_GONE)
            return Response(status_code=499)  # nobody reads it
        except Exception as exc:  # as above
            inference.failed(FailureCode.INTERNAL, type(exc).__name__)
            return _defect(exc)

    def _document(self, call: Call) -> tuple[object, int]:
        """What is asked for, and the HTTP status. Raises RequestFailedError: no such model."""
        match call.what:
            case What.LIVE:
                return {"live": True}, 200
            case What.READY:
                state = self._service.look().state
                return {"ready": state == "ready", "state": state}, 200 if state == "ready" else 503
            case What.INDEX:
                return [self._index_entry(name) for name in self._catalogue.names], 200
            case What.STATISTICS:
                names = [call.model] if call.model else self._catalogue.names
                return {"model_stats": [self._statistics(name) for name in names]}, 200
            case What.SERVER:
                return {
                    "name": "aecnn-deploy",
                    "version": __version__,
                    "extensions": list(EXTENSIONS),
                    "parameters": {BUNDLE_KEY: self._service.bundle.id},
                }, 200
            case _:
                return self._of_model(call)

    def _of_model(self, call: Call) -> tuple[Document, int]:
        served = self._catalogue.find(call.model)
        runner = served.lane.model.runner_name
        if call.what is What.CONFIG:
            return served.model.config(runner, self._service.settings.batch_wait_ms), 200
        if call.what is What.MODEL:
            return served.model.metadata(runner), 200
        why = self._catalogue.refusal(served)
        return {"name": served.model.name, "ready": not why} | ({"reason": why} if why else {}), 503 if why else 200

    def _index_entry(self, name: str) -> Document:
        why = self._catalogue.refusal(self._catalogue.find(name))
        return {"name": name, "version": VERSION, "state": "UNAVAILABLE" if why else "READY", "reason": why}

    def _statistics(self, name: str) -> Document:
        self._catalogue.find(name)  # raises before a stranger's word becomes a key
        return self._catalogue.statistics[name].document(name, self._service.observer.metrics.ran(name))


def _json(document: object, status: int, headers: dict[str, str] | None = None) -> "Response":
    from starlette.responses import Response

    return Response(msgspec.json.encode(document), status, headers, media_type="application/json")


def _failure(error: RequestFailedError) -> "Response":
    status, headers = STATUS.get(error.code, 500), {}
    if status == 503 or error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s or 1))
    if error.code in (TOO_LARGE, TOO_SLOW):
        headers["connection"] = "close"  # the rest of the body is not read
    return _json({"error": error.reason}, status, headers)


def _defect(exc: Exception) -> "Response":
    logger.exception("a request below %s failed", PREFIX)
    return _failure(RequestFailedError(FailureCode.INTERNAL, type(exc).__name__))
