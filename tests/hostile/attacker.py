"""Makes one attack, as a client and as the backend it asks for, and prints what it was told.

    python -m tests.hostile.attacker NAME SERVICE_PORT BACKEND_PORT

Started by `stage.py`; prints `[STATUS, "CODE"]`.
"""

import http.client
import json
import re
import socketserver
import sys
import threading

from tests.hostile.attacks import ATTACKS, MEGABYTE, QUESTION, Answer, Request

PATIENCE_SECONDS = 90.0


class _Backend(socketserver.ThreadingTCPServer):
    """Gives one answer to whoever asks."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, answer: Answer) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.answer = answer


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        length = 0
        while line := self.rfile.readline().strip():
            name, _, value = line.lower().partition(b":")
            length = int(value) if name == b"content-length" else length
        self.rfile.read(length)
        assert isinstance(self.server, _Backend)
        try:
            self._play(self.server.answer)
        except OSError:
            pass  # the service has had enough

    def _play(self, answer: Answer) -> None:
        headers = {"Content-Type": "text/event-stream", **answer.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.wfile.write(
            f"HTTP/1.1 {answer.status} X\r\n{head}Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        for piece in answer.pieces():
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")


def attack(attack: Request | Answer, port: int, backend_port: int) -> tuple[int, str]:
    """The status and the error's code."""
    if isinstance(attack, Request):
        return _ask(port, attack.body(), attack.headers)
    asked = {"model": attack.name, "stream": True, "messages": QUESTION}
    with _Backend(backend_port, attack) as backend:
        threading.Thread(target=backend.serve_forever, args=(0.05,), daemon=True).start()
        try:
            return _ask(port, json.dumps(asked).encode(), {})
        finally:
            backend.shutdown()


def _ask(port: int, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    try:
        connection.request(
            "POST",
            "/v1/chat/completions",
            body,
            {"Content-Type": "application/json", **headers},
        )
    except OSError:
        pass  # refused before all of it was read; what was said may be there
    try:
        response = connection.getresponse()
        said = b""
        while data := response.read(MEGABYTE):
            said = (said + data)[-MEGABYTE:]
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()
    code = re.search(rb'"error":\{.*?"code":"(\w+)"', said)
    return response.status, code[1].decode() if code else ""


if __name__ == "__main__":
    _, wanted, service_port, own_port = sys.argv
    (chosen,) = (one for one in ATTACKS if one.name == wanted)
    print(json.dumps(attack(chosen, int(service_port), int(own_port))))
