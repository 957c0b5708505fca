"""Everything that can be wrong with a request, in the form that OpenAI's clients raise exceptions from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from flows.serving.body import Body

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "server_error",
    504: "server_error",
}


class Wrong(HTTPException):
    """An answer that is no answer: a status, what is wrong, in which field, and a word to go by."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> Body:
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, dict(self.headers or {}))


def install(app: FastAPI) -> None:
    """Give every error of the app this form."""

    @app.exception_handler(Wrong)
    def _wrong(_: Request, error: Wrong) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return invalid(list(error.errors())).response()

    @app.exception_handler(HTTPException)
    def _http(request: Request, error: HTTPException) -> JSONResponse:
        texts = {
            404: f"there is nothing at {request.url.path}; OpenAI's API begins at /v1",
            405: f"{request.url.path} does not take {request.method}",
            400: "the body cannot be read as JSON",
        }
        return Wrong(
            error.status_code, texts.get(error.status_code, str(error.detail)), headers=error.headers
        ).response()

    @app.exception_handler(Exception)
    def _fault(_: Request, error: Exception) -> JSONResponse:
        return Wrong(500, "a fault of the server; its log has more", code="internal_error").response()


def invalid(problems: list[Any]) -> Wrong:
    """400 for a body that does not fit the schema: the field, and what is wrong with it."""
    places = [[part for part in problem["loc"] if part != "body"] for problem in problems]
    # of the forms that a field may have, what is wrong with the one that fits furthest says most
    first = max(range(len(problems)), key=lambda i: len(places[i]))
    first = 0 if places[0] and all(place[:1] != places[0][:1] for place in places[1:]) else first
    problem, place = problems[first], places[first]
    if problem["type"].startswith("union_tag"):  # the field that tells the forms apart
        place = [*place, problem["ctx"]["discriminator"].strip("'")]
    param = ".".join(str(part) for part in place if not _is_form(part)) or None
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return Wrong(400, f"unknown field: {param}", param=param, code="unknown_parameter")
    if problem["type"] == "missing":
        return Wrong(400, f"missing field: {param or 'the body'}", param=param, code="missing_required_parameter")
    if problem["type"] == "json_invalid":
        return Wrong(400, f"the body is no JSON: {problem.get('ctx', {}).get('error', message)}", code="invalid_json")
    return Wrong(400, f"{param}: {message}" if param else message, param=param, code="invalid_value")


def _is_form(part: Any) -> bool:
    """Whether a part of a place names a form (of a union) and no field."""
    return isinstance(part, str) and (
        any(mark in part for mark in "[](,")
        or part in ("str", "int", "float", "ChosenTool", "TextPart")
        or part in ("system", "developer", "user", "assistant", "tool", "literal")
    )
