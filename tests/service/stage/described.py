"""Holds real answers to the API's description: their statuses, headers, media types and bodies.

`Description.ask` asks a running service and fails if the answer is not one that the description
has. It is strict: objects in an answer may have no field that the description doesn't name, so
the agents that it is used with must be our own, which send no fields of a backend's.
"""

import json
import re
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from service.endpoints.openapi import DOCUMENT
from tests.service.conftest import Service, Streamed

COMMON = {"content-type", "content-length", "transfer-encoding", "connection", "date", "server"}
"""Headers that HTTP itself needs; all others are described."""
_HERE = "urn:openapi"
_METHODS = ("get", "post", "put", "patch", "delete")

Json = dict[str, Any]


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


class Description:
    """The served document, read strictly or as it is.

    Attributes:
        seen: (operation id, status as documented, media type) of every answer so far.
    """

    def __init__(self, *, is_strict: bool = True) -> None:
        text = DOCUMENT.read_text("utf-8")
        self.document: Json = json.loads(text)
        if is_strict:
            text = text.replace('"additionalProperties": true', '"additionalProperties": false')
        self._registry = Registry().with_resource(
            _HERE, Resource.from_contents(json.loads(text), default_specification=DRAFT202012)
        )
        self.seen: set[tuple[str, str, str | None]] = set()

    # --- reading it -------------------------------------------------------------------------

    @property
    def operations(self) -> dict[tuple[str, str], Json]:
        """(method, path) → operation."""
        return {
            (method.upper(), path): item[method]
            for path, item in self.document["paths"].items()
            for method in _METHODS
            if method in item
        }

    @property
    def responses(self) -> dict[tuple[str, str], str]:
        """(operation id, status) → the pointer to the response, references followed."""
        return {
            (operation["operationId"], status): self.follow(
                f"#/paths/{_escaped(path)}/{method.lower()}/responses/{status}"
            )
            for (method, path), operation in self.operations.items()
            for status in operation["responses"]
        }

    @property
    def answers(self) -> set[tuple[str, str, str | None]]:
        """Everything that `seen` can hold."""
        return {
            (name, status, media)
            for (name, status), pointer in self.responses.items()
            for media in self.at(pointer).get("content", {None: None})
        }

    def at(self, pointer: str) -> Json:
        """What a pointer (`#/components/…`) leads to."""
        value: Any = self.document
        for part in pointer.removeprefix("#").split("/")[1:]:
            value = value[part.replace("~1", "/").replace("~0", "~")]
        found: Json = value
        return found

    def follow(self, pointer: str) -> str:
        """The pointer, or where the reference at it points to."""
        return str(self.at(pointer).get("$ref", pointer))

    # --- holding values to it ---------------------------------------------------------------

    def complaints(self, value: Any, pointer: str) -> list[str]:
        """What is wrong with a value by the schema at `pointer`."""
        validator = Draft202012Validator({"$ref": _HERE + pointer}, registry=self._registry)
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]

    def check(self, method: str, path: str, status: int, headers: Any, body: bytes) -> None:
        """Fail unless an answer is one that is described."""
        operation = next(
            operation
            for (known, template), operation in self.operations.items()
            if known == method and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path)
        )
        name, keys = operation["operationId"], (str(status), f"{status // 100}XX")
        key = next(key for key in keys if key in operation["responses"])
        pointer = self.responses[name, key]
        self._check_headers(pointer, headers)
        content = self.at(pointer).get("content")
        if content is None:
            assert (b"", None) == (body, headers.get("Content-Type"))
            self.seen.add((name, key, None))
            return
        media = headers["Content-Type"].partition(";")[0]
        schema = f"{pointer}/content/{_escaped(media)}/schema"
        if media == "text/event-stream":
            self._check_stream(status, headers, body, schema)
        else:
            assert [] == self.complaints(json.loads(body), schema)
        self.seen.add((name, key, media))

    def _check_headers(self, response: str, headers: Any) -> None:
        described = self.at(response).get("headers", {})
        names = {name.lower() for name in described}
        assert {name.lower() for name in headers} - COMMON - names == set(), "undescribed headers"
        for name in described:
            pointer = self.follow(f"{response}/headers/{name}")
            if name in headers:
                is_number = self.at(pointer)["schema"].get("type") == "integer"
                value = int(headers[name]) if is_number else headers[name]
                assert [] == self.complaints(value, f"{pointer}/schema"), name
            else:
                assert not self.at(pointer).get("required"), f"{name} is missing"

    def _check_stream(self, status: int, headers: Any, body: bytes, schema: str) -> None:
        events = Streamed(status, headers, body).data
        assert events
        for position, data in enumerate(events):
            assert [] == self.complaints({"data": data}, schema)
            if data == "[DONE]":
                assert position == len(events) - 1
                continue
            # Validators take contentSchema for a remark, so what is in the text is checked here.
            kind = "Error" if "error" in json.loads(data) else "ChatCompletionChunk"
            assert [] == self.complaints(json.loads(data), f"#/components/schemas/{kind}")
            assert kind != "Error" or position == len(events) - 1

    async def ask(
        self, service: Service, method: str, path: str, status: int, **options: Any
    ) -> Any:
        """Ask, check, and give back the JSON, or the bytes of a stream."""
        if service.key is not None:
            keyed = {"Authorization": f"Bearer {service.key}"}
            options["headers"] = {**keyed, **options.get("headers", {})}
        async with service.http.request(method, service.url + path, **options) as response:
            body = await response.read()
            self.check(method, path.partition("?")[0], response.status, response.headers, body)
            assert response.status == status, body
            is_json = body and response.content_type == "application/json"
            return json.loads(body) if is_json else body
