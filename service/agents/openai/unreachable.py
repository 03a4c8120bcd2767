"""Says why no response could be had: from aiohttp's errors to a failure for clients and a cause for
the log.

Clients are told no agent's name and no address; the cause has both.
"""

import aiohttp
from aiohttp.http_exceptions import LineTooLong

from service.agents.openai.connection import RedirectedElsewhere
from service.agents.openai.redacting import Redactor
from service.agents.protocol import AgentError
from service.settings.checking import mask_password
from statemachine import Failure

_LONGEST_CAUSE = 300
_KINDS: tuple[tuple[type[Exception], str], ...] = (
    # the more special class first
    (aiohttp.ServerTimeoutError, "connecting took too long"),
    (aiohttp.ClientProxyConnectionError, "proxy not reached"),
    (aiohttp.ClientHttpProxyError, "refused by the proxy"),
    (aiohttp.ClientConnectorDNSError, "unknown host"),
    (aiohttp.ClientSSLError, "no trusted TLS connection"),
    (aiohttp.ClientConnectorError, "not reached"),
    (RedirectedElsewhere, "redirect not followed"),
    (aiohttp.ClientResponseError, "bad response head"),
    (aiohttp.ServerDisconnectedError, "closed before it answered"),
    (aiohttp.ClientOSError, "connection broke"),
)


def connection_error(error: Exception, connect_seconds: float, redactor: Redactor) -> AgentError:
    """How an agent refuses whose backend gave no response."""
    cause = cause_of(error, redactor)
    match error:
        case RedirectedElsewhere():
            message = f"The model's backend redirects elsewhere ({error.status})."
            return AgentError(Failure("upstream_redirected", message), cause=cause)
        case aiohttp.ServerTimeoutError():
            message = f"Connecting to the model's backend took over {connect_seconds:g} s."
            failure = Failure("connect_timeout", message, type="timeout_error")
        case aiohttp.ClientResponseError() if _is_too_large(error):
            message = "The model's backend answered with a head that is too large."
            return AgentError(
                Failure("upstream_malformed", message, should_retry=False), cause=cause
            )
        case aiohttp.ClientConnectorCertificateError():  # no later attempt finds another one
            message = "The model's backend could not be trusted."
            return AgentError(
                Failure("upstream_unreachable", message, should_retry=False), cause=cause
            )
        case _:
            failure = Failure("upstream_unreachable", "The model's backend could not be reached.")
    return AgentError(failure, is_retryable=True, cause=cause)


def cause_of(error: Exception, redactor: Redactor) -> str:
    """What happened, for the log: the kind in a few words, the class, and what it says."""
    kind = next((words for kind, words in _KINDS if isinstance(error, kind)), "no connection")
    if isinstance(error.__cause__, ConnectionRefusedError) or _errno_says_refused(error):
        kind = "connection refused"
    said = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
    said = " ".join(said.partition(" when reading")[0].split())
    said = redactor.text(mask_password(said[:_LONGEST_CAUSE]))
    return f"{kind} ({type(error).__name__}{': ' if said else ''}{said})"


def _errno_says_refused(error: Exception) -> bool:
    os_error = getattr(error, "os_error", error)
    return isinstance(os_error, ConnectionRefusedError)


def _is_too_large(error: aiohttp.ClientResponseError) -> bool:
    says = error.message.startswith(("Got more than", "Too many headers"))
    return says or isinstance(error.__cause__, LineTooLong)
