"""Cuts a reader's connection many times in one answer, and shows that it has every chunk of it, once.

    python examples/cuts.py [--cuts 10] [--reader python|node] [--question TEXT] [BASE_URL]

Between the reader (`examples/resuming.py`, or `resuming.mjs`) and the service stands a TCP proxy that
cuts the connection: the first time before a byte of the answer has passed, then after a kilobyte each,
in the middle of a chunk as it happens, in turn by closing it and by resetting it. A second reader reads
the same answer straight from the service, at the same time, and is never cut. Ends with status 1 if the
two have read different chunks. It needs the standard library alone; the readers need the SDKs.
"""

import argparse
import hashlib
import http.client
import json
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

HERE = Path(__file__).parent
KILOBYTE = 1024
READERS = {
    "python": [sys.executable, str(HERE / "resuming.py")],
    "node": [shutil.which("node") or "node", str(HERE / "resuming.mjs")],
}
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


class Proxy:
    """Passes connections on to a service, and cuts so many of them."""

    def __init__(self, service: tuple[str, int], cuts: int) -> None:
        self.made = 0
        self._service = service
        self._cuts = cuts
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        """Pass one connection's bytes on, up to the cut."""
        room = KILOBYTE if self.made else 0
        with client, socket.create_connection(self._service) as server:
            while True:
                ready, _, _ = select.select([client, server], [], [])
                if client in ready:
                    asked = client.recv(65536)
                    if not asked:
                        return
                    server.sendall(asked)
                if server in ready:
                    data = server.recv(65536)
                    if self.made < self._cuts and len(data) > room:
                        client.sendall(data[:room])
                        return self._cut(client)
                    if not data:
                        return
                    client.sendall(data)
                    room -= len(data)

    def _cut(self, client: socket.socket) -> None:
        self.made += 1
        is_reset = self.made % 2 == 0
        if is_reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        print(f"cut {self.made}: {'reset' if is_reset else 'closed'}", flush=True)


def read_uncut(base: str, completion_id: str, chunks: list[Any]) -> None:
    """Read an answer by its id, to its end."""
    url = urlsplit(base)
    connection = http.client.HTTPConnection(url.hostname or "", url.port)
    key = os.environ.get("OPENAI_API_KEY", "unused")
    path = f"{url.path}/chat/completions/{completion_id}?stream=true"
    connection.request("GET", path, headers={"Authorization": f"Bearer {key}"})
    for line in connection.getresponse():
        if line.startswith(b"data: {"):
            chunks.append(json.loads(line[6:]))


def report(name: str, chunks: list[Any]) -> bytes:
    """Say what a reader has read; its chunks as bytes."""
    texts = [
        choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"]
    ]
    data = json.dumps(chunks, sort_keys=True).encode()
    digest = hashlib.sha256(data).hexdigest()[:16]
    print(f"{name}: {len(chunks)} chunks, {len(''.join(texts))} characters, SHA-256 {digest}…")
    return data


def main() -> None:
    parser = argparse.ArgumentParser(description="Cut a reader's connection many times.")
    parser.add_argument("--cuts", type=int, default=10)
    parser.add_argument("--reader", choices=READERS, default="python")
    parser.add_argument("--question", help="what is asked")
    default = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
    parser.add_argument("base_url", nargs="?", default=default)
    arguments = parser.parse_args()
    url = urlsplit(arguments.base_url)
    proxy = Proxy((url.hostname or "", url.port or 80), arguments.cuts)
    command = [*READERS[arguments.reader], f"http://127.0.0.1:{proxy.port}{url.path}"]
    command += [arguments.question] if arguments.question else []

    cut: list[Any] = []
    uncut: list[Any] = []
    beside: threading.Thread | None = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        for line in reader.stdout:
            cut.append(json.loads(line))
            if beside is None:
                about = (arguments.base_url, cut[0]["id"], uncut)
                beside = threading.Thread(target=read_uncut, args=about)
                beside.start()
    if beside is not None:
        beside.join()
    same = report(f"the reader that was cut {proxy.made} times", cut) == report(
        "the one that was not", uncut
    )
    print("the same" if same else "DIFFERENT")
    sys.exit(not (same and cut and proxy.made == arguments.cuts and reader.returncode == 0))


if __name__ == "__main__":
    main()
