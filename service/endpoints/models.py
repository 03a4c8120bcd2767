"""Lists the models that can be asked for: `GET /v1/models`. The agents' directory decides which."""

from aiohttp import web
from attrs import frozen

from service.agents.directory import AgentDirectory


@frozen
class Models:
    """The endpoint."""

    directory: AgentDirectory

    def routes(self) -> list[web.RouteDef]:
        """The call and its handler."""
        return [web.get("/v1/models", self.list_all)]

    async def list_all(self, _request: web.Request) -> web.Response:
        """Every model, each once, in the agents' order."""
        return web.json_response({"object": "list", "data": await self.directory.models()})
