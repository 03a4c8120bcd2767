"""Stores conversations in Open WebUI's own tables, by its own migrations and models.

Its server isn't started, which would need all of its hundred packages. The calls are those that its
server makes for a turn (`main.py` when a question comes, `utils/middleware.py` when the answer has
ended); titles, tags and follow-ups, which it asks a model for, are left out.
Runs in an environment of its own (`openwebui.txt`), with DATABASE_URL set and this repository on
PYTHONPATH: `openwebui.py migrate`, or `openwebui.py fill CONVERSATIONS TURNS READS`, which prints the
milliseconds of each read as JSON.
"""

import asyncio
import json
import random
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import open_webui
from alembic import command
from alembic.config import Config
from open_webui.models.chats import ChatForm, Chats
from open_webui.models.users import Users

from benchmarks.stand.lines import answer, question

_AT_ONCE = 10
_MODEL = "bench"


def migrate() -> None:
    folder = Path(open_webui.__file__).parent
    config = Config(folder / "alembic.ini")
    config.set_main_option("script_location", str(folder / "migrations"))
    command.upgrade(config, "head")


def _asked(user: Any, text: str, parent: str | None, reply: str) -> dict[str, Any]:
    """The user's message as the page sends it."""
    return {
        "id": str(uuid4()),
        "parentId": parent,
        "childrenIds": [reply],
        "role": "user",
        "content": text,
        "timestamp": int(time.time()),
        "models": [_MODEL],
        "user_id": user.id,
        "user": {"id": user.id, "name": user.name},
    }


async def _begin(chat_id: str, user: Any, message: dict[str, Any], reply: str) -> None:
    waiting = {
        "id": reply,
        "parentId": message["id"],
        "childrenIds": [],
        "role": "assistant",
        "content": "",
        "done": False,
        "model": _MODEL,
        "timestamp": int(time.time()),
    }
    chat = {
        "id": chat_id,
        "title": "New Chat",
        "models": [_MODEL],
        "history": {"currentId": reply, "messages": {message["id"]: message, reply: waiting}},
        "messages": [{"role": "user", "content": message["content"]}],
        "files": [],
        "tags": [],
        "timestamp": int(time.time() * 1000),
    }
    await Chats.insert_new_chat(chat_id, user.id, ChatForm(chat=chat))


async def _end(chat_id: str, reply: str, text: str) -> None:
    words = len(text.split())
    item = {
        "type": "message",
        "id": f"msg_{uuid4().hex}",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": text}],
    }
    usage = {"prompt_tokens": 90, "completion_tokens": words, "total_tokens": words + 90}
    ended = {"done": True, "output": [item], "usage": usage}
    await Chats.upsert_message_to_chat_by_id_and_message_id(chat_id, reply, ended)


async def _converse(chat_id: str, user: Any, number: int, turns: int) -> None:
    parent: str | None = None
    for turn in range(turns):
        reply = str(uuid4())
        message = _asked(user, question(number, turn), parent, reply)
        if turn == 0:
            await _begin(chat_id, user, message, reply)
        else:
            entry = {"message_id": reply, "model_id": _MODEL}
            await Chats.insert_chat_turn(chat_id, user, message, [entry])
            await Chats.update_chat_by_id(chat_id, {"models": [_MODEL]}, touch=False)
            await Chats.update_chat_variables_by_id(chat_id, {})
        await _end(chat_id, reply, answer(number, turn))
        parent = reply


async def _read(chat_id: str, user: Any, last: str) -> float:
    """Milliseconds; the last answer must be there."""
    began = time.perf_counter()
    chat = await Chats.get_chat_by_id_and_user_id(chat_id, user.id)
    took = (time.perf_counter() - began) * 1e3
    messages = chat.chat["history"]["messages"]
    if messages[chat.current_message_id]["content"] != last:
        raise SystemExit(f"{chat_id} has lost its last answer")
    return took


async def fill(conversations: int, turns: int, reads: int) -> dict[str, Any]:
    user = SimpleNamespace(id=str(uuid4()), name="Somebody", role="admin")
    await Users.insert_new_user(user.id, user.name, "somebody@example.org", role="admin")
    ids = [str(uuid4()) for _ in range(conversations)]
    numbers = iter(range(conversations))

    async def work() -> None:
        for number in numbers:
            await _converse(ids[number], user, number, turns)

    await asyncio.gather(*(work() for _ in range(_AT_ONCE)))
    chance, times = random.Random(1), []
    for _ in range(reads + 5):
        number = chance.randrange(conversations)
        times.append(await _read(ids[number], user, answer(number, turns - 1)))
    return {"read_ms": times[5:]}


if __name__ == "__main__":
    if sys.argv[1] == "migrate":
        migrate()
    else:
        print(json.dumps(asyncio.run(fill(*map(int, sys.argv[2:])))))
