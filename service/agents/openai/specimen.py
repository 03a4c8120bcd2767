"""Has the SDK word a request that goes nowhere: its address and its headers serve from then on.

The only file that sees `openai` and `httpx2`, and nobody imports it before it is needed; of these the
SDK comes last, as its import takes longer than that of all the rest of the service, and 18 MB.
"""

import ssl
from collections.abc import Mapping

import httpx2

from service.agents.openai.known import NO_KEY, Specimen

_NOT_OURS = frozenset(("host", "content-length", "connection"))
"""Headers that aiohttp writes itself."""
_ABOUT_THE_SDK = "x-stainless-"
"""What the SDK tells of itself: its retries and timeouts, which aren't used here, and the machine."""


class Sdk:
    """The SDK's client for one backend. It sends nothing.

    Args:
        base_url: where paths begin.
        api_key: None for a backend that asks for none.
        headers: what every request carries besides the SDK's own, or instead.
    """

    def __init__(self, base_url: str, api_key: str | None, headers: Mapping[str, str]) -> None:
        import openai

        self._headers = dict(headers)
        self._recorder = _Recorder()
        self._client = openai.AsyncOpenAI(
            api_key=api_key or NO_KEY,
            base_url=base_url,
            max_retries=0,
            http_client=httpx2.AsyncClient(transport=self._recorder),
        )

    async def specimen(self, path: str) -> Specimen:
        """What the SDK would send to a path, such as `/chat/completions`. One call at a time."""
        await self._client.post(
            path, cast_to=httpx2.Response, content=b"{}", options={"headers": self._headers}
        )
        request = self._recorder.request
        assert request is not None
        named = ((name.lower(), value) for name, value in request.headers.multi_items())
        ours = {name: value for name, value in named if _is_ours(name)}
        return Specimen(str(request.url), ours)

    async def close(self) -> None:
        """Let go of it."""
        await self._client.close()


def load() -> None:
    """Import the SDK."""
    import openai  # noqa: F401


def trusted_authorities() -> ssl.SSLContext:
    """Whom the SDK would trust. Reads files, for some 20 ms."""
    return httpx2.create_ssl_context()


class _Recorder(httpx2.AsyncBaseTransport):
    """A transport that keeps the request and says that all went well."""

    def __init__(self) -> None:
        self.request: httpx2.Request | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.request = request
        return httpx2.Response(200, json={})


def _is_ours(name: str) -> bool:
    return name not in _NOT_OURS and not name.startswith(_ABOUT_THE_SDK)
