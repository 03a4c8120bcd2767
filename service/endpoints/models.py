"""Shows the models that can be asked for: `GET /v1/models`, and one of them by its id.

The agents' directory decides which there are.
"""

from aiohttp import web
from attrs import frozen

from service.agents.directory import AgentDirectory
from service.edge.errors import ApiError
from service.endpoints.lists import json_response
from statemachine import Failure

_LONGEST_SHOWN = 100


@frozen
class Models:
    """The endpoints."""

    directory: AgentDirectory

    def routes(self) -> list[web.RouteDef]:
        """The calls and their handlers."""
        return [
            web.get("/v1/models", self.list_all),
            web.get("/v1/models/{model:.+}", self.retrieve),  # ids have slashes: mistralai/…
        ]

    async def list_all(self, _request: web.Request) -> web.Response:
        """Every model, each once, in the agents' order."""
        return json_response({"object": "list", "data": await self.directory.models()})

    async def retrieve(self, request: web.Request) -> web.Response:
        """The model of this id, as the list has it; 404 for one that the list hasn't."""
        name = request.match_info["model"]
        for model in await self.directory.models():
            if model["id"] == name:
                return json_response(model)
        message = (
            f"There is no model {name[:_LONGEST_SHOWN]!r}; GET /v1/models lists those there are."
        )
        raise ApiError(
            Failure("model_not_found", message, type="invalid_request_error", param="model")
        )
