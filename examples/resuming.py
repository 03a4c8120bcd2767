"""Reads an answer to its true end, however often the connection breaks, with the official Python SDK.

    python examples/resuming.py [BASE_URL [QUESTION]]

`read` is what to take along. The base URL is that of a running service, http://127.0.0.1:8000/v1 if
neither the argument nor OPENAI_BASE_URL says another. Prints each chunk of an answer of the agent
`demo`, a line of JSON each, those that tell of its tools included. `examples/cuts.py` shows what it is
good for.
"""

import os
import random
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

from openai import APIConnectionError, APIStatusError, NotFoundError, OpenAI, Stream
from openai.types.chat import ChatCompletionChunk

TRIES = 10
"""So often in a row nothing may come."""


def read(client: OpenAI, **request: Any) -> Iterator[ChatCompletionChunk]:
    """Each chunk of an answer, once and in order. Raises what the SDK raises if the answer broke off."""
    key, completion_id, position, failures, finished = str(uuid.uuid4()), "", 0, 0, 0
    while True:
        try:
            if not completion_id:  # the key: if this has arrived already, nobody is asked twice
                headers = {"Idempotency-Key": key}
                stream = client.chat.completions.create(
                    **request, stream=True, extra_headers=headers
                )
            else:
                usage = (request.get("stream_options") or {}).get("include_usage") or False
                query = {"stream": True, "starting_after": position, "include_usage": usage}
                stream = client.get(
                    f"/chat/completions/{completion_id}",
                    cast_to=ChatCompletionChunk,
                    stream=True,
                    stream_cls=Stream[ChatCompletionChunk],
                    options={"params": query},
                )
            completion_id = stream.response.headers["x-completion-id"]
            with stream:
                for chunk in stream:
                    position, failures = position + 1, 0
                    finished += sum(choice.finish_reason is not None for choice in chunk.choices)
                    yield chunk
            if finished >= (request.get("n") or 1) or is_over(client, completion_id):
                return
        except (APIConnectionError, APIStatusError) as error:
            failures += 1
            if failures == TRIES or not is_worth_a_try(error):
                raise
            time.sleep(random.uniform(0.5, 1) * min(0.25 * 2**failures, 8))


def is_over(client: OpenAI, completion_id: str) -> bool:
    """True of an answer that somebody stopped; a proxy may have hidden a cut, so the service is asked."""
    try:
        shown = client.chat.completions.retrieve(completion_id).to_dict()
    except NotFoundError:  # asked for with store=False, and over
        return True
    return shown["state"] not in ("pending", "streaming")


def is_worth_a_try(error: APIConnectionError | APIStatusError) -> bool:
    """True if asking again may help."""
    if isinstance(error, APIConnectionError):
        return True
    told, status = error.response.headers.get("x-should-retry"), error.status_code
    return told != "false" and (status in (409, 429) or status >= 500)


def main() -> None:
    default = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
    client = OpenAI(
        base_url=sys.argv[1] if len(sys.argv) > 1 else default,
        api_key=os.environ.get("OPENAI_API_KEY", "unused"),
        timeout=40,  # seconds without a word or a keep-alive: the connection is dead
    )
    question = sys.argv[2] if len(sys.argv) > 2 else "Can you be read again?"
    for chunk in read(client, model="demo", messages=[{"role": "user", "content": question}]):
        print(chunk.to_json(indent=None), flush=True)


if __name__ == "__main__":
    main()
