"""Decides how a client is told of the tools that are called for it. Pure."""

from collections.abc import Mapping

from attrs import evolve

from service.agents.protocol import AgentTools
from statemachine import Activity, SessionPolicy

_OF_OPEN_WEBUI = ("X-OpenWebUI-Chat-Id", "X-OpenWebUI-User-Id", "X-OpenWebUI-Message-Id")
"""What Open WebUI sends with `ENABLE_FORWARD_USER_INFO_HEADERS`."""


def telling(policy: SessionPolicy, tools: AgentTools, headers: Mapping[str, str]) -> SessionPolicy:
    """The policy of a session whose agent has these tools, for a request with these headers."""
    if tools.show != "auto":
        activity = Activity(tools.show)
    else:
        is_open_webui = any(name in headers for name in _OF_OPEN_WEBUI)
        activity = Activity.OPENWEBUI if is_open_webui else Activity.FIELD
    return evolve(policy, activity=activity, shows_tool_detail=tools.shows_detail)
