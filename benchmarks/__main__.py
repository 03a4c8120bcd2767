"""Our service beside nginx, a textbook service and LiteLLM, under the same load."""

import argparse
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.comparison import Bench, Results, chosen, compare
from benchmarks.contenders import CONTENDERS
from benchmarks.machine import describe, settle
from benchmarks.report import print_all
from benchmarks.running import Server, upstream
from benchmarks.workloads import cases


def main() -> None:
    options = _flags()
    started = time.monotonic()

    def tell(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {text}", file=sys.stderr, flush=True)

    settle()
    results = Results()
    asked = options.workloads.split(",")
    wanted = [case for case in cases(options.quick) if case.workload in asked]
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o755)
        server = Server(directory / "postgres")
        stack.callback(server.stop)
        bench = Bench(directory, stack.enter_context(upstream()), server.dsn, tell)
        compare(bench, chosen(options.contenders), wanted, results)
    print_all(results)
    if options.json:
        options.json.write_text(json.dumps({"machine": describe(), **results.as_json()}, indent=2))


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", default="paced,burst,short,arrival,idle")
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
