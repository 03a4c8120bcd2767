"""The five calls for stored completions, with the official Python SDK.

    python examples/stored_completions.py [BASE_URL]

The base URL is that of a running service, http://127.0.0.1:8000/v1 if neither the argument nor
OPENAI_BASE_URL says another. Asks the agent `demo` for some answers, then lists, retrieves,
updates and deletes them, and reads their messages. Ends with status 1 if anything is not as it
should be; deletes what it made.
"""

import os
import sys
import uuid

from openai import NotFoundError, OpenAI

QUESTIONS = ("What is a journal?", "What is a ping?", "What is a drain?", "And a saver?", "Bye!")


def expect(right: bool, what: str) -> None:
    """Say what was seen; stop if it isn't so."""
    print(f"  {'ok' if right else 'WRONG'}  {what}")
    if not right:
        sys.exit(1)


def main() -> None:
    default = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
    base_url = sys.argv[1] if len(sys.argv) > 1 else default
    api_key = os.environ.get("OPENAI_API_KEY", "unused")
    completions = OpenAI(base_url=base_url, api_key=api_key).chat.completions
    run = uuid.uuid4().hex

    print(f"ask {len(QUESTIONS)} questions")
    made = [
        completions.create(
            model="demo",
            messages=[{"role": "user", "content": question, "name": "Ada"}],
            metadata={"run": run, "kind": "odd" if number % 2 else "even"},
            store=True,
        )
        for number, question in enumerate(QUESTIONS)
    ]
    hidden = completions.create(
        model="demo",
        messages=[{"role": "user", "content": "Not to be shown."}],
        metadata={"run": run},
        store=False,
    )
    ids = [completion.id for completion in made]
    print("   ", *ids)

    print("list")
    found = [item.id for item in completions.list(metadata={"run": run}, limit=2)]
    expect(found == ids, f"auto-pagination by twos finds all {len(found)}, oldest first")
    backwards = completions.list(metadata={"run": run}, limit=2, order="desc")
    expect([item.id for item in backwards] == ids[::-1], "order=desc: newest first")
    odd = completions.list(metadata={"run": run, "kind": "odd"}, model="demo")
    expect([item.id for item in odd.data] == ids[1::2], "filters by model and metadata")
    page = completions.list(metadata={"run": run}, after=ids[1], limit=2)
    expect([item.id for item in page.data] == ids[2:4], "after: the page goes on there")
    expect(page.has_more is True, "has_more says that there is another")

    print("retrieve")
    one = completions.retrieve(ids[0])
    expect(one.choices == made[0].choices, repr(one.choices[0].message.content)[:60])
    expect(one.usage == made[0].usage, f"usage: {one.usage.total_tokens if one.usage else None}")
    expect(one.metadata == {"run": run, "kind": "even"}, "metadata")
    expect((one.model_extra or {}).get("state") == "completed", "state: completed")
    try:
        completions.retrieve(hidden.id)
        expect(False, "store=False is hidden")
    except NotFoundError as error:
        expect(error.code == "not_found", "store=False is hidden: 404 not_found")

    print("update")
    changed = completions.update(ids[0], metadata={"run": run, "kind": "changed"})
    expect(changed.metadata == {"run": run, "kind": "changed"}, "metadata is replaced")
    again = completions.list(metadata={"run": run, "kind": "changed"})
    expect([item.id for item in again.data] == ids[:1], "and found by its new value")

    print("messages")
    messages = list(completions.messages.list(ids[0], limit=1))
    expect([item.content for item in messages] == [QUESTIONS[0]], f"{messages[0].content!r}")
    expect(messages[0].role == "user" and messages[0].content_parts is None, "role, content_parts")

    print("delete")
    for item in completions.list(metadata={"run": run}, limit=2):
        expect(completions.delete(item.id).deleted, f"{item.id} while the list is read")
    expect(completions.list(metadata={"run": run}).data == [], "none is left")
    try:
        completions.retrieve(ids[0])
        expect(False, "a deleted one is gone")
    except NotFoundError:
        expect(True, "a deleted one is gone")


if __name__ == "__main__":
    main()
