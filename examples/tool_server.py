"""A server of tools in a few lines: it searches the Markdown files of a folder. See docs/agents.md.

pip install 'mcp>=2.3,<3'
python examples/tool_server.py docs
"""

import sys
from pathlib import Path

from mcp.server import MCPServer

PLACE = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
server = MCPServer("handbook")


@server.tool()
def search(words: str, most: int = 5) -> list[str]:
    """Find lines of the handbook that have all of these words."""
    wanted = words.lower().split()
    lines = [
        f"{path.name}: {line.strip()}"
        for path in sorted(PLACE.glob("*.md"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if all(word in line.lower() for word in wanted)
    ]
    return lines[:most]


if __name__ == "__main__":
    server.run("streamable-http", host="127.0.0.1", port=9000)
