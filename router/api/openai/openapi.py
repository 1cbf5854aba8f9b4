"""The OpenAPI document, made from the models that check the requests."""

from __future__ import annotations

from typing import Any

from router.api.openai.schema import ChatCompletionRequest

_REF = "#/components/schemas/{model}"
_ERRORS = {
    "400": "The request can't succeed; param names the field.",
    "401": "No token, or an unknown one.",
    "404": "Another model.",
    "413": "A size is over its limit.",
    "429": "Too many requests; Retry-After says when to come again.",
    "503": "An actor broke, or none is there.",
    "504": "The deadline passed.",
}


def openapi_document(version: str) -> dict[str, Any]:
    """OpenAPI 3.1."""
    request = ChatCompletionRequest.model_json_schema(ref_template=_REF)
    schemas = request.pop("$defs") | {"ChatCompletionRequest": request, "Error": _ERROR}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Triptych", "version": version},
        "paths": {
            "/v1/chat/completions": {
                "post": {
                    "operationId": "chat",
                    "summary": "Answers a chat with text, pictures and videos; as server-sent events with stream.",
                    "requestBody": {
                        "required": True,
                        "content": {"application/json": {"schema": _reference("ChatCompletionRequest")}},
                    },
                    "responses": _responses(
                        {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}}, *_ERRORS
                    ),
                }
            },
            "/v1/models": {"get": _get("models", "The model that is served.")},
            "/v1/models/{model}": {
                "get": _get("model", "One model.", "404")
                | {
                    "parameters": [
                        {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
                    ]
                }
            },
            "/health": {"get": _get("health", "The process answers.")},
            "/ready": {"get": _get("ready", "Every stage has an actor that takes work.", "503")},
            "/metrics": {"get": _get("metrics", "For Prometheus.", kind="text/plain")},
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}


def _get(name: str, summary: str, *errors: str, kind: str = "application/json") -> dict[str, Any]:
    return {"operationId": name, "summary": summary, "responses": _responses({kind: {}}, "401", "429", *errors)}


def _responses(content: dict[str, Any], *errors: str) -> dict[str, Any]:
    problem = {"application/json": {"schema": _reference("Error")}}
    told = {code: {"description": _ERRORS[code], "content": problem} for code in errors}
    return {"200": {"description": "Done.", "content": content}, **told}


def _reference(name: str) -> dict[str, str]:
    return {"$ref": _REF.format(model=name)}
