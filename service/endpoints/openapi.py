"""Serves the API's description for programs: `GET /openapi.json`, in OpenAPI 3.1.

People write `docs/openapi.yaml`; `python -m service.endpoints.openapi` (`make docs`) makes
`service/endpoints/openapi.json` of it, which goes into the package and is served as it is. What the
API is, is decided elsewhere.
"""

import json
import sys
from hashlib import sha256
from pathlib import Path

from aiohttp import ETag, hdrs, web

DOCUMENT = Path(__file__).with_name("openapi.json")


class OpenApi:
    """The endpoint. Reads the document once, when made.

    Raises OSError if the document is missing: the installation is broken.
    """

    def __init__(self, path: Path = DOCUMENT) -> None:
        self._body = path.read_bytes()
        self._etag = sha256(self._body).hexdigest()[:32]

    def routes(self) -> list[web.RouteDef]:
        """The call and its handler."""
        return [web.get("/openapi.json", self.answer)]

    async def answer(self, request: web.Request) -> web.Response:
        """The document, or 304 for a client that has it."""
        known = request.if_none_match or ()
        if any(etag.value in (self._etag, "*") for etag in known):
            response = web.Response(status=304)
        else:
            response = web.Response(body=self._body, content_type="application/json")
        response.etag = ETag(self._etag)
        # A copy is valid until the service is upgraded, so the client must ask each time.
        response.headers[hdrs.CACHE_CONTROL] = "no-cache"
        return response


def as_json(text: str) -> str:
    """The JSON of a document in YAML.

    Raises `yaml.YAMLError`.
    """
    import yaml  # only `make docs` needs it; the service reads the JSON

    return json.dumps(yaml.safe_load(text), ensure_ascii=False, indent=1) + "\n"


def main(arguments: list[str]) -> int:
    """The command line: the YAML file to read."""
    (source,) = arguments
    DOCUMENT.write_text(as_json(Path(source).read_text("utf-8")), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
