"""What a store shows its owners, in a few words each."""

from typing import Any

from db.rows.history import rows_of
from db.store import CompletionFilter, CompletionView, ConversationView, Page, Paging, Store
from statemachine import SessionRecord

ALL = CompletionFilter()
HIDDEN = {"parameters": {"store": False}}
TOOLS = [{"type": "function", "function": {"name": "look"}}]


def ids(page: Page[CompletionView]) -> list[str]:
    return [view.completion.completion_id for view in page.items]


async def listed(
    store: Store, wanted: CompletionFilter = ALL, *, owner: str = "alice", limit: int = 100
) -> list[str]:
    return ids(await store.list_completions(owner, wanted, Paging(limit)))


async def prompt(store: Store, record: SessionRecord) -> list[Any]:
    """What the completion's client sent, as the store gives it."""
    page = await store.list_prompt("alice", record.completion_id, Paging(100))
    assert page is not None
    return [message.content for message in page.items]


async def tree(store: Store, record: SessionRecord) -> ConversationView | None:
    name = rows_of(record).conversation.conversation_id
    return await store.view_conversation("alice", name, Paging(1000))


async def shown_tree(store: Store, record: SessionRecord) -> dict[str, str | None]:
    """Each text of the conversation with the text above it."""
    view = await tree(store, record)
    assert view is not None
    texts = {node.node_id: text_of(node.message) for node in view.nodes.items}
    return {
        texts[node.node_id]: None if node.parent_id is None else texts[node.parent_id]
        for node in view.nodes.items
    }


def text_of(message: Any) -> str:
    return "(nothing)" if message is None else message.content
