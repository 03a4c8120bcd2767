"""Names who runs a backend, by its host, as OpenTelemetry's GenAI conventions name them.

Knows no configuration. Who isn't known is called `openai`: so the conventions have it for whatever
is reached by OpenAI's API, and the address tells the rest.
"""

_PROVIDERS = {
    "anthropic.com": "anthropic",
    "cohere.ai": "cohere",
    "cohere.com": "cohere",
    "deepseek.com": "deepseek",
    "googleapis.com": "gcp.gemini",
    "groq.com": "groq",
    "mistral.ai": "mistral_ai",
    "openai.azure.com": "azure.ai.openai",
    "perplexity.ai": "perplexity",
    "services.ai.azure.com": "azure.ai.inference",
    "x.ai": "x_ai",
}


def provider_of(host: str) -> str:
    """The well-known name of who runs the backend at this host; `openai` if there is none."""
    labels = host.lower().rstrip(".").split(".")
    names = (".".join(labels[start:]) for start in range(len(labels)))
    return next((_PROVIDERS[name] for name in names if name in _PROVIDERS), "openai")
