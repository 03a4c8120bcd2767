"""An MCP server that is a process: JSON lines over standard input and output, by the older protocol.

    python process_server.py FILE

Each start adds a line to the file. Its tools: `pid`, `env` (of the variable `GIVEN`), `die` (end at once),
`hang`, and `quiet` (say something on standard error).
"""

import json
import os
import sys
import time
from typing import Any

TOOLS = [
    {"name": name, "inputSchema": {"type": "object"}}
    for name in ("pid", "env", "die", "hang", "quiet")
]


def result_of(message: dict[str, Any]) -> dict[str, Any] | None:
    """The answer to a request; None if there is none that is known."""
    match message["method"]:
        case "initialize":
            info = {"name": "process", "version": "1"}
            can: dict[str, Any] = {"tools": {}}
            return {"protocolVersion": "2025-11-25", "capabilities": can, "serverInfo": info}
        case "tools/list":
            return {"tools": TOOLS}
        case "tools/call":
            return {"content": [{"type": "text", "text": done(message["params"]["name"])}]}
    return None


def done(name: str) -> str:
    """Do what a tool does, and say what it answers."""
    match name:
        case "die":
            os._exit(3)
        case "hang":
            time.sleep(60)
        case "env":
            return os.environ.get("GIVEN", "nothing") + os.environ.get("NOT_GIVEN", "")
        case "quiet":
            print("secret on standard error", file=sys.stderr, flush=True)
    return str(os.getpid())


def main() -> None:
    """Answer until the input ends."""
    with open(sys.argv[1], "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message:
            continue
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
        result = result_of(message)
        if result is None:
            answer["error"] = {"code": -32601, "message": "Method not found"}
        else:
            answer["result"] = result
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
