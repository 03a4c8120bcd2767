"""Measures what it costs to let a caller in, and to turn one away: microseconds, in one process.

    python -m benchmarks.questions.admission
    python -m benchmarks.questions.admission --fleet

Each figure is the best of five rounds. The last three are of whole HTTP exchanges on loopback with
keep-alive, client included; the first of them asks for nothing, so compare the others with it.

`--fleet` compares whole requests instead: CPU time of three services (`benchmarks.questions.pair` says how it
is counted), one alone with limits, one of a fleet without and one of it with all limits, which asks a real
Redis for each request. The Redis's own time isn't counted.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

import aiohttp
from aiohttp import web

from benchmarks.comparison.loads import again_and_again
from benchmarks.contenders import Target
from benchmarks.stand.figures import print_table
from benchmarks.stand.machine import settle
from benchmarks.stand.plan import Plan
from benchmarks.stand.running import scene, service
from db.memory.store import MemoryStore
from service.app import build_app
from service.callers.auth import Keyring
from service.callers.limits import Account
from service.edge.connections import Runner
from service.edge.errors import ApiError
from service.settings.access import ApiKeyConfig, AuthConfig, LimitsConfig, keys_from_environment
from service.settings.config import Config, JournalConfig

ROUNDS, CALLS, EXCHANGES = 5, 20_000, 1_000
KEYS = tuple(
    ApiKeyConfig(name=entry["name"], sha256=entry["sha256"])
    for entry in keys_from_environment(",".join(f"n{n}:0123456789abcdef-{n}" for n in range(1000)))
)
LAST = "0123456789abcdef-{}"


def timed(call: Callable[[], object], calls: int = CALLS) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        since = time.perf_counter()
        for _ in range(calls):
            call()
        best = min(best, time.perf_counter() - since)
    return best / calls * 1e6


def refuse(account: Account) -> None:
    try:
        account.check(0.0)
    except ApiError:
        return
    raise AssertionError


def admit(account: Account) -> None:
    account.check(0.0)
    account.requests.take(1, 0.0)


async def exchanges(ask: Callable[[], Awaitable[int]], status: int) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        since = time.perf_counter()
        for _ in range(EXCHANGES):
            assert await ask() == status
        best = min(best, time.perf_counter() - since)
    return best / EXCHANGES * 1e6


async def over_http() -> dict[str, float]:
    config = Config(
        journal=JournalConfig(directory=None),
        auth=AuthConfig(KEYS[:100]),
        limits=LimitsConfig(requests_per_minute=1),
    )
    runner = Runner(build_app(config, store=MemoryStore()), 75.0, 1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession(base) as http:

        async def probe() -> int:
            async with http.get("/healthz") as response:
                await response.read()
                return response.status

        async def complete(key: str) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            async with http.post("/v1/chat/completions", data=b"{", headers=headers) as response:
                await response.read()
                return response.status

        await complete(LAST.format(0))
        plain = await exchanges(probe, 200)
        found = {
            "an exchange that asks for nothing (GET /healthz)": plain,
            "an exchange with a wrong key, 401, of 100": await exchanges(
                lambda: complete("sk-wrong"), 401
            ),
            "an exchange over the limit, 429": await exchanges(
                lambda: complete(LAST.format(0)), 429
            ),
        }
    await runner.cleanup()
    return found


# --- whole requests, over replicas ----------------------------------------------------------------

LIMITS = {"requests_per_minute": 10**9, "tokens_per_minute": 10**9, "max_concurrent_streams": 10**6}
PLAN = Plan(chunks=20, interval_us=1000)


def over_replicas(rounds: int, seconds: float, at_once: int) -> None:
    """Print the CPU time of a request with 20 chunks, and the ratio with shared limits to without any."""
    from tests.redis_servers import redis_server  # which only this needs

    settle()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(redis_server(directory)).url
        on = stack.enter_context(scene())
        kinds: dict[str, dict[str, object]] = {
            "alone, limited": {"limits": LIMITS},
            "fleet, without limits": {"fleet": {"url": url, "replica": "without"}},
            "fleet, limited": {"limits": LIMITS, "fleet": {"url": url, "replica": "limited"}},
        }
        targets = [
            Target(
                name,
                *stack.enter_context(
                    service(
                        on.directory / name.replace(", ", "-").replace(" ", "-"), on.config | kind
                    )
                ),
            )
            for name, kind in kinds.items()
        ]
        costs: dict[str, list[float]] = {name: [] for name in kinds}
        for number in range(rounds + 1):
            for target in targets if number % 2 else targets[::-1]:
                load = asyncio.run(again_and_again(target, PLAN, at_once, seconds))
                if number:
                    costs[target.name].append(load.cpu / load.complete * 1e6)
    rows = {
        name: {"median": round(median(each)), "min": round(min(each)), "max": round(max(each))}
        for name, each in costs.items()
    }
    print_table(f"CPU of the service per request, µs; {rounds} rounds, {at_once} at once", rows)
    _, without, limited = costs.values()
    ratio = median(ours / theirs for ours, theirs in zip(limited, without, strict=True))
    print(f"median of the rounds' ratios, limited to without limits: {ratio:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fleet", action="store_true", help="whole requests, over replicas")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round")
    parser.add_argument("--at-once", type=int, default=10, help="requests at once")
    options = parser.parse_args()
    if options.fleet:
        over_replicas(options.rounds, options.seconds, options.at_once)
    else:
        in_one_process()


def in_one_process() -> None:
    for count in (1, 100, 1000):
        ring = Keyring(KEYS[:count])
        key = LAST.format(count - 1)
        assert ring.owner_of_key(key) == f"n{count - 1}"
        name = f"{count} key{'s' * (count > 1)}"
        print(f"{timed(partial(ring.owner_of_key, key), 2000):8.1f}  a key of {name}")
    full = Account(LimitsConfig(requests_per_minute=1, tokens_per_minute=1))
    admit(full)
    roomy = Account(LimitsConfig(10**9, 10**9, 10**9))
    print(f"{timed(lambda: admit(roomy)):8.1f}  admitting, all limits set")
    print(f"{timed(lambda: roomy.headers(0.0)):8.1f}  the x-ratelimit headers")
    print(f"{timed(lambda: refuse(full)):8.1f}  refusing, its error included")
    for name, figure in asyncio.run(over_http()).items():
        print(f"{figure:8.1f}  {name}")


if __name__ == "__main__":
    main()
