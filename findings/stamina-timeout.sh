#!/bin/sh
# stamina's `timeout`, "maximum total time for all retries", lets one more wait and one more attempt
# begin after it, so that 1.5 seconds can be three, and half a second two.
#
# Versions: stamina 26.1.0, tenacity 9.2.1; Python 3.11.
# Needs: sh, python3 (3.11 or newer), a Python package index.
#
# A good guess:
#   No attempt begins after the timeout: a wait that would end beyond it is cut short, or isn't begun.
#
# What happens:
#   The clock is read when an attempt has failed, before the wait: if the time isn't up by then, the
#   wait is slept to its end, however long, and another attempt is made. So the total is the timeout
#   and a whole wait and a whole attempt more. With a hook that returns what `Retry-After` says, the
#   server decides how much that is, as neither `wait_max` nor `timeout` bounds such a wait.
#
# Output seen on 2026-11-28:
#   timeout 1.5, waits of 1 and 2: attempts after 0, 1, 3 s
#   timeout 0.5, a hook that says 2: attempts after 0, 2 s
#
# Why it matters:
#   "Answer or fail within a minute" isn't kept by `timeout=60`, and callers behind a proxy are gone
#   by the last attempt. Put a deadline such as `asyncio.timeout` around the whole loop, and bound in
#   the hook what it takes from a header.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
    stamina==26.1.0 tenacity==9.2.1
"$folder/venv/bin/python" - >"$folder/output" <<'END'
import time

import stamina

stamina.instrumentation.set_on_retry_hooks([])


def attempts(**options):
    """When each attempt began, in whole seconds."""
    begun, times = time.monotonic(), []
    try:
        for attempt in stamina.retry_context(**options):
            with attempt:
                times.append(f"{time.monotonic() - begun:.0f}")
                raise ConnectionError
    except ConnectionError:
        return ", ".join(times)


print(
    "timeout 1.5, waits of 1 and 2: attempts after",
    attempts(on=ConnectionError, timeout=1.5, wait_initial=1, wait_max=5, wait_jitter=0),
    "s",
)
print(
    "timeout 0.5, a hook that says 2: attempts after",
    attempts(on=lambda _: 2.0, timeout=0.5, wait_max=1),
    "s",
)
END
cat "$folder/output"
sed -n '/^# Output seen on/,/^#$/s/^#   //p' "$0" | diff - "$folder/output" ||
    { echo "This is no longer what happens." >&2; exit 1; }
