"""A stand-in for a model's backend, cheap enough not to be what is measured.

Run as its own process: `python -m benchmarks.upstream --words 20 --interval 0.02` prints its
port. It answers every POST with a stream of that many one-word chunks, the first at once.
"""

import argparse
import asyncio

_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n"
)


def _chunk(delta: str, finish_reason: str = "null") -> bytes:
    event = (
        '{"id":"up","object":"chat.completion.chunk","created":1700000000,"model":"bench",'
        '"choices":[{"index":0,"delta":%s,"logprobs":null,"finish_reason":%s}]}'
    )
    data = f"data: {event % (delta, finish_reason)}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


WORD = _chunk('{"content":"word "}')
END = _chunk("{}", '"stop"') + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


async def _serve(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, words: int, interval: float
) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.partition(b":")[2])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length:")
            )
            await reader.readexactly(length)
            writer.write(_HEAD + WORD)
            for _ in range(words - 1):
                await asyncio.sleep(interval)
                writer.write(WORD)
                await writer.drain()
            writer.write(END)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def _main(words: int, interval: float) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _serve(reader, writer, words, interval)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--words", type=int, default=20)
    parser.add_argument("--interval", type=float, default=0.02, help="seconds between words")
    options = parser.parse_args()
    asyncio.run(_main(options.words, options.interval))
