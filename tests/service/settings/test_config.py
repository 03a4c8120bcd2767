"""The configuration: every key, where values come from, and what is said when one doesn't fit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import attrs
import pytest
import yaml

from service.settings.checking import ConfigError
from service.settings.config import (
    AgentConfig,
    Config,
    OpenAIAgentConfig,
    ScriptedAgentConfig,
    dump_config,
    is_loopback,
    load_config,
    mask_password,
)
from statemachine import ClientGone

ROOT = Path(__file__).parents[3]
INF, NAN = float("inf"), float("nan")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def load(file: Path, tree: Any, environ: dict[str, str] | None = None) -> Config:
    """The configuration that a file with this tree in it gives."""
    file.write_text(yaml.safe_dump(tree), "utf-8")
    return load_config(file, environ or {})


def problems(file: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    """The lines of what is said about a file with this text."""
    file.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file, environ or {})
    return str(caught.value).split("\n")


def tree_problems(file: Path, tree: Any) -> list[str]:
    return problems(file, yaml.safe_dump(tree))


# --- every key ------------------------------------------------------------------------------------

NAME = "a non-empty text"
NAME_OR_NONE = [(wrong, NAME) for wrong in ("", 5, True, ["a"], {"a": 1})]
NAMES = [*NAME_OR_NONE, (None, NAME)]
ABOVE_0 = "a number above 0"
SECONDS = [(wrong, ABOVE_0) for wrong in (0, -1, -0.5, "5", True, None, [1], INF, -INF, NAN)]
SECONDS += [(10**400, ABOVE_0)]
FROM_0 = [(wrong, "a number from 0") for wrong in (-1, -0.5, "5", False, None, [0], INF, NAN)]
WHOLE_FROM_0_OR_NONE = [(wrong, "a number from 0") for wrong in (-1, 1.0, "5", True, [0])]
WHOLE_FROM_0 = [*WHOLE_FROM_0_OR_NONE, (None, "a number from 0")]
COUNT = [(wrong, "a whole number above 0") for wrong in (0, -1, 1.0, "5", True, None, [1])]
COUNT_OR_NONE = [(wrong, allowed) for wrong, allowed in COUNT if wrong is not None]
LISTS = [(wrong, "a list") for wrong in ("a", 5, {"a": 1}, None)]
TEXT_OR_NONE = [(wrong, "a text") for wrong in (5, True, ["a"])]
MAPPING = [(wrong, "a mapping of keys") for wrong in ("a", 5, ["a"], None)]
GONE = "cancel or wait or finish"
GONE_OR_NONE = [(wrong, GONE) for wrong in ("", "stop", "CANCEL", 5, True, ["cancel"])]
PORTS = [(wrong, "a port, 0 to 65535") for wrong in (-1, 65536, 80.0, "80", True, None)]
URL = "an http:// or https:// URL without a fragment"
DATABASE = "'embedded' or a postgresql:// URL"
FLEET = "a redis://, rediss:// or unix:// URL, or redis+sentinel:// or redis+cluster://"
REPLICA = "1 to 64 letters, digits and . _ -"
SWITCH = [(wrong, "true or false") for wrong in (0, 1, "yes", "true", None, [True])]
LEVELS = "debug or info or warning or error"
SHOWN = "none or field or openwebui or auto"
FAILURES = "reset or stall or error or truncate or malformed"

# key: a value other than its default, and wrong values with what is said to be allowed instead
Row = tuple[Any, list[tuple[Any, str]]]
FOR_EVERY_AGENT: dict[str, Row] = {
    "name": ("other", NAMES),
    "models": (["x", "y-*"], LISTS),
    "timeouts.connect_seconds": (0.1, SECONDS),
    "timeouts.first_token_seconds": (0.1, SECONDS),
    "timeouts.idle_seconds": (0.1, SECONDS),
    "timeouts.total_seconds": (0.1, SECONDS),
    "retries": (7, WHOLE_FROM_0),
    "fallbacks": (["second"], LISTS),
    "client_gone": ("finish", GONE_OR_NONE),
    "max_event_bytes": (1, COUNT),
    "tools.builtin": (["dice", "clock"], LISTS),
    "tools.allow_commands": (True, SWITCH),
    "tools.max_turns": (1, COUNT),
    "tools.concurrency": (1, COUNT),
    "tools.on_error": ("stop", [(w, "tell_model or stop") for w in ("", "go", True, 1, None)]),
    "tools.show": ("none", [(w, SHOWN) for w in ("", "all", False, 1, None)]),
    "tools.show_detail": (True, SWITCH),
}
KEYS: dict[str, Row] = {
    "server.host": ("::1", NAMES),
    "server.port": (0, PORTS),
    "server.workers": (2, COUNT),
    "server.max_body_bytes": (1, COUNT),
    "server.max_body_values": (1, COUNT),
    "server.max_concurrent_streams": (1, COUNT),
    "server.request_timeout_seconds": (0.5, SECONDS),
    "server.idle_timeout_seconds": (0.5, SECONDS),
    "server.drain_timeout_seconds": (0, FROM_0),
    "server.cors_origins": (["https://a.example"], LISTS),
    "server.allowed_hosts": (["a.example"], LISTS),
    "server.conversation_headers": (["X-Thread"], LISTS),
    "sse.keep_alive_interval_seconds": (0.05, SECONDS),
    "sse.send_timeout_seconds": (1, SECONDS),
    "client_gone": ("finish", [*GONE_OR_NONE, (None, GONE)]),
    "client_gone_wait_seconds": (0.5, SECONDS),
    "client_gone_header": (
        "ignore",
        [(w, "allow or ignore") for w in ("Allow", "", True, 1, None)],
    ),
    "readers.max_per_completion": (1, COUNT),
    "readers.hidden_seconds": (0.5, SECONDS),
    "readers.max_tape_bytes": (1, COUNT),
    "idempotency.client_gone": ("finish", [*GONE_OR_NONE, (None, GONE)]),
    "idempotency.keep_seconds": (0.5, SECONDS),
    "idempotency.on_mismatch": ("run", [(w, "refuse or run") for w in ("422", "", True, 1, None)]),
    "database.url": (
        "postgresql://user@host/name",
        [("", NAME), *((wrong, DATABASE) for wrong in ("mysql://h/d", "embedded ", 5, None))],
    ),
    "database.data_dir": ("/tmp/data", NAMES),
    "database.pool_max_size": (1, COUNT),
    "database.commit_timeout_seconds": (0.5, SECONDS),
    "journal.directory": ("/tmp/journal", NAME_OR_NONE),
    "journal.fsync": (
        "always",
        [(wrong, "never or terminal or always") for wrong in ("NEVER", "", False, 1, None)],
    ),
    "journal.max_bytes": (1, COUNT),
    "limits.requests_per_minute": (1, COUNT_OR_NONE),
    "limits.tokens_per_minute": (1, COUNT_OR_NONE),
    "limits.max_concurrent_streams": (1, COUNT_OR_NONE),
    "limits.max_answer_bytes": (None, COUNT_OR_NONE),
    "limits.tool_calls_per_minute": (1, COUNT_OR_NONE),
    "admin.host": ("::1", NAMES),
    "admin.port": (0, [row for row in PORTS if row[0] is not None]),
    "admin.texts": ("hide", [(w, "show or hide") for w in ("", "no", True, 1, None)]),
    "admin.session_seconds": (0.5, SECONDS),
    "metrics.enabled": (False, SWITCH),
    "metrics.per_owner": (True, SWITCH),
    "fleet.url": ("redis://h/0", [(w, FLEET) for w in ("", "h:6379", "http://h", 5, True)]),
    "fleet.replica": ("a", [(w, REPLICA) for w in ("", "a b", "a" * 65, 5, True)]),
    "fleet.journal": (
        "off",
        [(w, "off or follow or before_send") for w in ("on", "", True, 1, None)],
    ),
    "fleet.wait_replicas": (1, [(w, "a number from 0") for w in (-1, 0.5, "", True, None)]),
    "fleet.lease_seconds": (0.5, SECONDS),
    "logging.level": ("debug", [(wrong, LEVELS) for wrong in ("DEBUG", "", 10, None, ["info"])]),
    "logging.format": (
        "json",
        [(wrong, "auto or console or json") for wrong in ("xml", "", 1, None, True)],
    ),
    **{
        f"agents.{kind}.{key}": row
        for kind in ("scripted", "openai")
        for key, row in FOR_EVERY_AGENT.items()
    },
    "agents.scripted.kind": (
        "openai",
        [(wrong, "scripted or openai") for wrong in ("", "llama", 5, None, ["openai"], True)],
    ),
    "agents.scripted.reply": ("", TEXT_OR_NONE),
    "agents.scripted.tokens_per_second": (0.1, SECONDS),
    "agents.scripted.first_token_delay_seconds": (0.1, FROM_0),
    "agents.scripted.fail_after_tokens": (0, WHOLE_FROM_0_OR_NONE),
    "agents.scripted.fail_with": ("stall", [(w, FAILURES) for w in ("crash", "", 5, None, True)]),
    "agents.openai.kind": ("scripted", [("OpenAI", "scripted or openai")]),
    "agents.openai.base_url": (
        "http://127.0.0.1:11434/v1",
        [
            ("", NAME),
            *((wrong, URL) for wrong in ("127.0.0.1:11434", "ftp://h", 5, None)),
            *(
                (wrong, URL)
                for wrong in ("http://", "http://h:port", "http://h:99999", "http://[::1")
            ),
        ],
    ),
    "agents.openai.api_key_env": (None, NAME_OR_NONE),
    "agents.openai.cut_off_reasons": (["eos"], LISTS),
    "agents.openai.circuit.failures": (1, COUNT),
    "agents.openai.circuit.pause_seconds": (0.1, SECONDS),
    "agents.openai.circuit.longest_pause_seconds": (0.1, SECONDS),
    "agents.openai.preamble": ("Be kind.", TEXT_OR_NONE),
    "agents.openai.parameters": ({"temperature": 0.7, "stop": ["a", None]}, MAPPING),
}


def keys_of(cls: type, prefix: str = "") -> Iterator[str]:
    """Every key of an attrs class, dotted, those of classes within included."""
    for attribute in attrs.fields(cls):
        kind: Any = attribute.type
        name = f"{prefix}{attribute.name}"
        parts = [part for part in get_args(kind) if isinstance(part, type)]
        inner = next(filter(attrs.has, parts), kind)
        if attrs.has(inner) and get_origin(kind) is not tuple:
            yield from keys_of(inner, f"{name}.")
        elif get_origin(kind) is tuple and get_args(kind)[0] is AgentConfig:
            for member in get_args(AgentConfig):
                (word,) = get_args(attrs.fields(member).kind.type)
                yield from keys_of(member, f"{name}.{word}.")
        elif name not in (
            "admin.api_keys",
            "auth.api_keys",
            # what is below these is never shown, or made of files: see test_auth.py, test_tools.py
            "agents.openai.context",
            "agents.openai.tools.servers",
            "agents.scripted.tools.servers",
        ):
            yield name


def tree_with(key: str, value: Any) -> dict[str, Any]:
    """A tree that is fine, but for this key."""
    *parents, last = key.split(".")
    tree: dict[str, Any] = {}
    below = tree
    if parents[:1] == ["agents"]:
        below = {"name": "first", "kind": parents[1]}
        second = {"name": "second", "kind": "scripted"}
        tree = {"agents": [below, second]}
        parents = parents[2:]
    for parent in parents:
        below = below.setdefault(parent, {})
    below[last] = value
    return tree


def path_of(key: str) -> str:
    """How an error names the key."""
    head, *rest = key.split(".")
    return ".".join(["agents[0]", *rest[1:]]) if head == "agents" else key


def value_of(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        if name in ("scripted", "openai"):
            value = value[0]
        else:
            value = getattr(value, name)
    return value


def test_every_key_has_a_row_in_the_table_above() -> None:
    """A new key needs a row in the table above, and with it its tests."""
    assert set(KEYS) == set(keys_of(Config))


@pytest.mark.parametrize("key", KEYS)
def test_each_key_can_be_set_in_the_file(file: Path, key: str) -> None:
    """A value given in the file is the one in force, in the field's own type."""
    given, _ = KEYS[key]
    expected = tuple(given) if isinstance(given, list) else given
    if key.endswith("_seconds") or key.endswith("_per_second"):
        expected = float(given)
    if key.endswith("client_gone"):
        expected = ClientGone(given)
    default = load_config(None, {}) if not key.startswith("agents") else None
    found = value_of(load(file, tree_with(key, given)), key)
    assert expected == found
    assert type(found) is type(expected)
    assert default is None or found != value_of(default, key)


def test_off_need_not_be_quoted(file: Path) -> None:
    """YAML reads it as false."""
    file.write_text("fleet: {journal: off}\n")
    assert "off" == load_config(file, {}).fleet.journal


def test_a_circuit_can_be_turned_off(file: Path) -> None:
    """null means that the agent is asked whatever became of the last request."""
    (agent, _) = load(file, tree_with("agents.openai.circuit", None)).agents
    assert isinstance(agent, OpenAIAgentConfig)
    assert agent.circuit is None
    wrongs: list[Any] = [False, 5, "off", []]
    for wrong in wrongs:
        (problem,) = tree_problems(file, tree_with("agents.openai.circuit", wrong))
        assert "agents[0].circuit" in problem


@pytest.mark.parametrize("key", KEYS)
def test_a_wrong_value_is_refused_and_never_converted(file: Path, key: str) -> None:
    """What doesn't fit is refused by file, key path, what was found and what is allowed; nothing
    is converted in silence."""
    _, wrongs = KEYS[key]
    assert wrongs
    for wrong, allowed in wrongs:
        found = repr(wrong) if len(repr(wrong)) <= 80 else repr(wrong)[:77] + "…"
        expected = f"{file}: {path_of(key)}: found {found}, allowed: {allowed}"
        assert [expected] == tree_problems(file, tree_with(key, wrong))


@pytest.mark.parametrize(
    ("key", "value", "where"),
    [
        ("server.cors_origins", ["https://a", ""], "[1]"),
        ("server.cors_origins", [5], "[0]"),
        ("server.allowed_hosts", ["a", ""], "[1]"),
        ("agents.scripted.models", ["a", None], "[1]"),
        ("agents.openai.models", [["a"]], "[0]"),
        ("agents.openai.fallbacks", [{}], "[0]"),
    ],
)
def test_a_wrong_list_item_is_named(file: Path, key: str, value: list[Any], where: str) -> None:
    """In a list, the item at fault is named."""
    found = repr(value[int(where[1])])
    expected = f"{file}: {path_of(key)}{where}: found {found}, allowed: {NAME}"
    assert [expected] == tree_problems(file, tree_with(key, value))


@pytest.mark.parametrize(
    "section", ["server", "sse", "readers", "idempotency", "database", "logging"]
)
@pytest.mark.parametrize("wrong", ["a", 5, ["a"], None])
def test_a_section_must_be_a_mapping(file: Path, section: str, wrong: Any) -> None:
    """A section is a mapping of keys."""
    expected = f"{file}: {section}: found {wrong!r}, allowed: a mapping of keys"
    assert [expected] == tree_problems(file, {section: wrong})


@pytest.mark.parametrize(
    ("agents", "expected"),
    [
        (None, "agents: found None, allowed: a list"),
        ({}, "agents: found {}, allowed: a list"),
        ([], "agents: found no agent, allowed: at least one agent"),
        (["a"], "agents[0]: found 'a', allowed: a mapping of keys"),
        ([{}], "agents[0].kind: found None, allowed: scripted or openai"),
        (
            [{"kind": "scripted"}],
            "agents[0].name: found nothing, allowed: a value: this key must be given",
        ),
        (
            [{"name": "a", "kind": "scripted"}, {"name": "a", "kind": "openai"}],
            "agents[1].name: found 'a', allowed: a name used once",
        ),
        (
            [
                {"name": "a", "kind": "scripted", "fallbacks": ["b", "x"]},
                {"name": "b", "kind": "scripted"},
            ],
            "agents[0].fallbacks: found 'x', allowed: b",
        ),
        (
            [{"name": "a", "kind": "scripted", "fallbacks": ["a"]}],
            "agents[0].fallbacks: found 'a', allowed: nothing",
        ),
    ],
)
def test_agents_need_a_kind_and_names_of_their_own(file: Path, agents: Any, expected: str) -> None:
    """Agents have a kind and a name of their own, and fall back on each other only."""
    assert tree_problems(file, {"agents": agents}) == [f"{file}: {expected}"]


# --- unknown keys ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "path", "hint"),
    [
        ({"sevrer": {}}, "sevrer", " (did you mean server?)"),
        ({"server": {"prot": 1}}, "server.prot", " (did you mean port?)"),
        (
            {"sse": {"keep_alive_interval": 1}},
            "sse.keep_alive_interval",
            " (did you mean keep_alive_interval_seconds?)",
        ),
        ({"client_gone_": "cancel"}, "client_gone_", " (did you mean client_gone?)"),
        ({"zzz": 1}, "zzz", ""),
        ({5: 1}, "5", ""),
        ({"logging": {True: 1}}, "logging.True", ""),
        (
            {"agents": [{"name": "a", "kind": "openai", "timeouts": {"connect": 1}}]},
            "agents[0].timeouts.connect",
            " (did you mean connect_seconds?)",
        ),
        (
            {"agents": [{"name": "a", "kind": "scripted", "base_url": "http://h"}]},
            "agents[0].base_url",
            "",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(
    file: Path, tree: Any, path: str, hint: str
) -> None:
    """A key that doesn't exist is refused, with the ones that do and the nearest of them."""
    (line,) = tree_problems(file, tree)
    assert line.startswith(f"{file}: {path}: found an unknown key, allowed: ")
    assert line.endswith(hint)
    assert hint or "did you mean" not in line


def test_unknown_keys_have_their_own_hints(file: Path) -> None:
    """Of several unknown keys in one place, each is a problem with a hint of its own."""
    lines = tree_problems(file, {"server": {"prot": 1, "hots": "::1"}})
    known = (
        "host, port, workers, max_body_bytes, max_body_values, max_concurrent_streams, "
        "request_timeout_seconds, idle_timeout_seconds, drain_timeout_seconds, cors_origins, "
        "allowed_hosts, conversation_headers"
    )
    assert lines == [
        f"{file}: server.hots: found an unknown key, allowed: {known} (did you mean host?)",
        f"{file}: server.prot: found an unknown key, allowed: {known} (did you mean port?)",
    ]


def test_all_problems_are_named_at_once(file: Path) -> None:
    """All that is wrong is said in one go, a line each."""
    tree = {
        "server": {"port": "80", "nope": 1},
        "client_gone": "stay",
        "agents": [{"name": "", "kind": "scripted"}, {"kind": "gone"}],
    }
    lines = tree_problems(file, tree)
    assert [
        "agents[0].name",
        "agents[1].kind",
        "client_gone",
        "server.nope",
        "server.port",
    ] == sorted(line.split(": ")[1] for line in lines)


def test_all_problems_between_keys_are_named_at_once(file: Path) -> None:
    """The same holds for what no single key can tell."""
    agent = {"name": "a", "kind": "scripted", "fallbacks": ["x"]}
    lines = tree_problems(file, {"server": {"host": "0.0.0.0"}, "agents": [agent, agent]})
    assert [
        "agents[0].fallbacks",
        "agents[1].name",
        "agents[1].fallbacks",
        "server.host",
    ] == [line.split(": ")[1] for line in lines]


# --- the file -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "where", "found"),
    [
        ("server: [", "line 1, column 10", "expected the node content"),
        ("a: 1\n  b: 2", "line 2, column 4", "mapping values are not allowed"),
        ("\nserver:\n\tport: 1", "line 3, column 1", "cannot start any token"),
        ("server: {port: 1, port: 2}", "line 1, column 19", "the key 'port' is given twice"),
        ("sse: {}\nserver: {}\nsse: {}", "line 3, column 1", "the key 'sse' is given twice"),
        (
            "agents:\n- name: a\n  kind: scripted\n  kind: openai",
            "line 4, column 3",
            "the key 'kind' is given twice",
        ),
        ("? [a]\n: b", "line 1, column 3", "unhashable key"),
        ("server: !python/object:os.system x", "line 1, column 9", "constructor for the tag"),
        ("server: *nowhere", "line 1, column 9", "undefined alias"),
        ("a: 1\n---\nb: 2", "line 2, column 1", "another document"),
    ],
)
def test_bad_yaml_is_refused_with_line_and_column(
    file: Path, text: str, where: str, found: str
) -> None:
    """A file that isn't YAML, or says a thing twice, is refused with the line and column."""
    (line,) = problems(file, text)
    assert line.startswith(f"{file}: {where}: found ")
    assert found in line
    assert line.endswith(", allowed: YAML")


@pytest.mark.parametrize(
    "text",
    [
        'server: {host: "\x07"}',
        "server: {host: \x00}",
        "server: {host: 2026-13-45}",
        "server: {port: " + "1" * 5000 + "}",
        "[" * 500,
    ],
)
def test_odd_yaml_never_ends_in_a_traceback(file: Path, text: str) -> None:
    """What the parser can't stand is refused in one line as well, never with a traceback."""
    (line,) = problems(file, text)
    assert line.startswith(f"{file}: found ")
    assert line.endswith(", allowed: YAML")


@pytest.mark.parametrize("text", ["- server", "text", "5"])
def test_a_file_must_be_a_mapping(file: Path, text: str) -> None:
    """The file's top is a mapping."""
    expected = f"{file}: found {yaml.safe_load(text)!r}, allowed: a mapping of keys"
    assert [expected] == problems(file, text)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n", "{}"])
def test_an_empty_file_leaves_the_defaults(file: Path, text: str) -> None:
    """A file that says nothing leaves every default."""
    file.write_text(text)
    assert load_config(file, {}) == load_config(None, {})


def test_merge_keys_are_no_duplicates(file: Path) -> None:
    """YAML's anchors and `<<` work, and an anchor's own keys are not taken for doubles."""
    file.write_text(
        "agents:\n"
        "- name: a\n"
        "  kind: scripted\n"
        "  timeouts: &slow {idle_seconds: 600, total_seconds: 900}\n"
        "- name: b\n"
        "  kind: scripted\n"
        "  timeouts: &slower {<<: *slow, total_seconds: 1800}\n"
        "- name: c\n"
        "  kind: scripted\n"
        "  timeouts: {<<: *slower, idle_seconds: 900}\n"
    )
    found = [agent.timeouts for agent in load_config(file, {}).agents]
    assert [
        (600, 900),
        (600, 1800),
        (900, 1800),
    ] == [(it.idle_seconds, it.total_seconds) for it in found]


def test_a_missing_file_is_an_error(file: Path) -> None:
    """A file that was named and isn't there is an error, not the defaults."""
    with pytest.raises(ConfigError) as caught:
        load_config(file, {})
    assert str(caught.value) == f"{file}: found no such file, allowed: the path of a YAML file"


def test_an_unreadable_file_is_refused_by_name(tmp_path: Path) -> None:
    """A directory, or bytes that aren't UTF-8, are refused by name."""
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"server: {host: \xe9}")
    for path in (tmp_path, latin):
        with pytest.raises(ConfigError) as caught:
            load_config(path, {})
        assert str(caught.value).startswith(f"{path}: found ")
        assert str(caught.value).endswith(", allowed: a readable YAML file")


def test_the_file_in_the_root_is_the_defaults() -> None:
    """What `config.yaml` shows as defaults are the defaults."""
    assert load_config(ROOT / "config.yaml", {}) == load_config(None, {})


# --- the environment and flags --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "text", "key", "expected"),
    [
        ("DATABASE_URL", "postgresql://h/d", "database.url", "postgresql://h/d"),
        ("DATABASE_URL", "postgres://h/d", "database.url", "postgres://h/d"),
        ("DATABASE_URL", "embedded", "database.url", "embedded"),
        ("SSE_KEEP_ALIVE_INTERVAL", "5", "sse.keep_alive_interval_seconds", 5.0),
        ("SSE_KEEP_ALIVE_INTERVAL", "0.25", "sse.keep_alive_interval_seconds", 0.25),
        ("SSE_KEEP_ALIVE_INTERVAL", " 3 ", "sse.keep_alive_interval_seconds", 3.0),
        ("LOG_FORMAT", "console", "logging.format", "console"),
        ("JOURNAL_DIR", "/tmp/journal", "journal.directory", "/tmp/journal"),
        ("JOURNAL_DIR", "2026", "journal.directory", "2026"),
    ],
)
def test_each_variable_sets_its_key(variable: str, text: str, key: str, expected: Any) -> None:
    """Each variable sets its key, in the key's own type."""
    found = value_of(load_config(None, {variable: text}), key)
    assert expected == found
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("variable", "text", "path", "found", "allowed"),
    [
        ("SSE_KEEP_ALIVE_INTERVAL", "soon", "sse.keep_alive_interval_seconds", "'soon'", ABOVE_0),
        ("SSE_KEEP_ALIVE_INTERVAL", "15s", "sse.keep_alive_interval_seconds", "'15s'", ABOVE_0),
        ("SSE_KEEP_ALIVE_INTERVAL", "0", "sse.keep_alive_interval_seconds", "0", ABOVE_0),
        ("SSE_KEEP_ALIVE_INTERVAL", "-1", "sse.keep_alive_interval_seconds", "-1", ABOVE_0),
        ("SSE_KEEP_ALIVE_INTERVAL", "nan", "sse.keep_alive_interval_seconds", "nan", ABOVE_0),
        ("SSE_KEEP_ALIVE_INTERVAL", "inf", "sse.keep_alive_interval_seconds", "inf", ABOVE_0),
        ("DATABASE_URL", "mysql://h/d", "database.url", "'mysql://h/d'", DATABASE),
        ("DATABASE_URL", "5", "database.url", "'5'", DATABASE),
        ("LOG_FORMAT", "xml", "logging.format", "'xml'", "auto or console or json"),
    ],
)
def test_a_wrong_variable_is_named_as_the_source(
    variable: str, text: str, path: str, found: str, allowed: str
) -> None:
    """A variable that doesn't fit is named as the source, with the key it sets."""
    with pytest.raises(ConfigError) as caught:
        load_config(None, {variable: text})
    expected = f"environment variable {variable}: {path}: found {found}, allowed: {allowed}"
    assert expected == str(caught.value)


def test_empty_variables_count_as_unset() -> None:
    """`SSE_KEEP_ALIVE_INTERVAL= python run.py` is no setting."""
    names = (
        "DATABASE_URL",
        "JOURNAL_DIR",
        "SSE_KEEP_ALIVE_INTERVAL",
        "LOG_FORMAT",
        "OPENAI_BASE_URL",
    )
    assert load_config(None, dict.fromkeys(names, "")) == load_config(None, {})


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an environment given, the process's own counts."""
    monkeypatch.setenv("SSE_KEEP_ALIVE_INTERVAL", "1.5")
    assert 1.5 == load_config(None).sse.keep_alive_interval_seconds


def test_base_url_moves_the_agents_with_openais_key(file: Path) -> None:
    """`OPENAI_BASE_URL` goes with `OPENAI_API_KEY`; agents with another key, or none, stay."""
    agents = [
        {"name": "one", "kind": "openai"},
        {"name": "two", "kind": "openai", "api_key_env": "OTHER_KEY"},
        {"name": "three", "kind": "openai", "api_key_env": None},
        {"name": "four", "kind": "scripted"},
    ]
    config = load(file, {"agents": agents}, {"OPENAI_BASE_URL": "http://127.0.0.1:11434/v1"})
    found = [agent.base_url for agent in config.agents if isinstance(agent, OpenAIAgentConfig)]
    openai = "https://api.openai.com/v1"
    assert found == ["http://127.0.0.1:11434/v1", openai, openai]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("127.0.0.1:11434", "127.0.0.1:11434"),
        ("http://h:port/v1", "http://h:port/v1"),
        ("ftp://me:pa55@h/v1", "ftp://me:***@h/v1"),
    ],
)
def test_an_unusable_base_url_is_refused_by_name(url: str, shown: str) -> None:
    """An `OPENAI_BASE_URL` that leads nowhere is quoted, without its password."""
    with pytest.raises(ConfigError) as caught:
        load_config(None, {"OPENAI_BASE_URL": url})
    expected = f"environment variable OPENAI_BASE_URL: found {shown!r}, allowed: {URL}"
    assert expected == str(caught.value)


KEEP_ALIVE = ("sse", "keep_alive_interval_seconds")


def test_flags_precede_environment_file_and_defaults(file: Path) -> None:
    """Flags go before the environment, that before the file, that before the defaults."""
    environ = {"SSE_KEEP_ALIVE_INTERVAL": "2"}
    flags: dict[tuple[str, ...], int] = {KEEP_ALIVE: 3}
    file.write_text("sse: {keep_alive_interval_seconds: 1, send_timeout_seconds: 9}")

    def seconds(path: Path | None, *others: Any) -> float:
        return load_config(path, *others).sse.keep_alive_interval_seconds

    assert 15 == seconds(None, {})
    assert 1 == seconds(file, {})
    assert 2 == seconds(file, environ)
    assert 2 == seconds(None, environ)
    assert 3 == seconds(file, environ, flags)
    assert 3 == seconds(file, {}, flags)
    assert 9 == load_config(file, environ, flags).sse.send_timeout_seconds


def test_a_variable_mends_the_files_value(file: Path) -> None:
    """Only the value in force is judged: an override hides a wrong one in the file."""
    file.write_text("sse: {keep_alive_interval_seconds: soon}\nserver:\n")
    flags: dict[tuple[str, ...], int] = {("server", "port"): 1}
    config = load_config(file, {"SSE_KEEP_ALIVE_INTERVAL": "2"}, flags)
    assert 2 == config.sse.keep_alive_interval_seconds
    assert 1 == config.server.port


def test_a_wrong_flag_is_blamed_on_the_command_line() -> None:
    """A flag that doesn't fit is blamed on the command line."""
    with pytest.raises(ConfigError) as caught:
        load_config(None, {}, {("server", "port"): 70000, ("server", "host"): "192.0.2.1"})
    expected = "command line: server.port: found 70000, allowed: a port, 0 to 65535"
    assert expected == str(caught.value)


def test_each_problem_names_its_source(file: Path) -> None:
    """Each line names its own source."""
    file.write_text("sse: 5\ndatabase: {pool_max_size: 0}")
    with pytest.raises(ConfigError) as caught:
        load_config(file, {"LOG_FORMAT": "x", "SSE_KEEP_ALIVE_INTERVAL": "1"}, {("zzz",): 1})
    sources = sorted(line.split(": ")[0] for line in str(caught.value).split("\n"))
    assert sources == sorted([str(file)] * 3 + ["environment variable LOG_FORMAT"])


# --- hosts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_hosts_need_no_key(file: Path, host: str) -> None:
    """What only this machine can reach may be listened on."""
    assert is_loopback(host)
    assert load(file, {"server": {"host": host}}).server.host == host


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.2", "10.0.0.1", "example.com", "127.0.0.1.example.com"]
)
def test_other_hosts_are_refused_without_a_key(file: Path, host: str) -> None:
    """Anything else is refused while no caller is asked for a key, and the way out is named."""
    (line,) = tree_problems(file, {"server": {"host": host}})
    assert line.startswith(f"{file}: server.host: found {host!r}, allowed: a loopback address")
    assert "make key" in line
    assert "auth.api_keys" in line


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.com"])
def test_other_hosts_are_allowed_with_a_key(file: Path, host: str) -> None:
    """With a key in the file or the environment any address will do."""
    server = {"host": host}
    key = {"name": "somebody", "sha256": "0" * 64}
    assert load(file, {"server": server, "auth": {"api_keys": [key]}}).server.host == host
    environ = {"API_KEYS": "somebody:0123456789abcdef"}
    assert load(file, {"server": server}, environ).server.host == host


# --- showing the configuration --------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_a_printed_configuration_can_be_loaded(file: Path, key: str) -> None:
    """What `--print-config` prints is a file that gives the same configuration."""
    config = load(file, tree_with(key, KEYS[key][0]))
    file.write_text(dump_config(config), "utf-8")
    assert load_config(file, {}) == config


def test_the_defaults_can_be_printed_and_loaded(file: Path) -> None:
    """The defaults, agents included, can be printed and read."""
    file.write_text(dump_config(load_config(None, {})), "utf-8")
    config = load_config(file, {})
    assert config == load_config(None, {})
    assert [type(agent) for agent in config.agents] == [ScriptedAgentConfig, OpenAIAgentConfig]


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("embedded", "embedded"),
        ("postgresql://host/name", "postgresql://host/name"),
        ("postgresql://user@host/name", "postgresql://user@host/name"),
        ("postgresql://user:pa55@host:5432/name", "postgresql://user:***@host:5432/name"),
        ("postgresql://:pa55@host/name", "postgresql://:***@host/name"),
        ("postgresql://user:pa55@/name", "postgresql://user:***@/name"),
        ("postgresql://user:pa@55:x@host/name", "postgresql://user:***@host/name"),
        ("postgresql://user:pa?55@host/name", "postgresql://user:***@host/name"),
        ("postgresql://user:pa/55@host/name", "postgresql://user:***@host/name"),
        ("postgresql://user:pa55@h1,h2:1/name?a=b@c", "postgresql://user:***@h1,h2:1/name?a=b@c"),
        ("postgresql://host:5432/name?a=b@c", "postgresql://host:5432/name?a=b@c"),
        ("postgresql://host/name?password=pa55", "postgresql://host/name?password=***"),
        (
            "postgresql://u:pa55@h/n?user=u&password=pa@55&sslpassword=pa55&a=1",
            "postgresql://u:***@h/n?user=u&password=***&sslpassword=***&a=1",
        ),
    ],
)
def test_passwords_are_masked(url: str, masked: str) -> None:
    """A password is shown nowhere, wherever in the URL it stands, and all else is."""
    config = load_config(None, {"DATABASE_URL": url})
    assert mask_password(url) == masked
    assert yaml.safe_load(dump_config(config))["database"]["url"] == masked
    assert "55" not in masked.replace("5432", "")


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://tok3n@h:1/0", "redis://***@h:1/0"),
        ("REDISS://tok@3n@h", "REDISS://***@h"),
        ("redis+sentinel://tok/3n@h,i:1/m", "redis+sentinel://***@h,i:1/m"),
        ("unix://tok3n@/run/a", "unix://***@/run/a"),
        ("unix:///run/a@b", "unix:///run/a@b"),
        ("redis://user:tok3n@h", "redis://user:***@h"),
        ("redis://:tok3n@h", "redis://:***@h"),
        ("redis://h:6379/0?a=b@c", "redis://h:6379/0?a=b@c"),
        ("redis://h/0?sentinel_password=tok3n&db=1", "redis://h/0?sentinel_password=***&db=1"),
        ("https://h/v1?v=1&api-key=tok3n", "https://h/v1?v=1&api-key=***"),
        ("https://h/v1?API_KEY=tok3n&keep=1", "https://h/v1?API_KEY=***&keep=1"),
        (
            "https://h/?access_token=tok3n&x=?client%5Fsecret=3n",
            "https://h/?access_token=***&x=?client%5Fsecret=***",
        ),
        ("https://me@h/v1?monk=ey", "https://me@h/v1?monk=ey"),
    ],
)
def test_secrets_are_masked(url: str, masked: str) -> None:
    """Those that are no passwords, too: by their names, and a Redis token without a user."""
    assert masked == mask_password(url)
    assert "3n" not in masked


def test_passwords_of_backends_are_masked() -> None:
    """The printed configuration shows where a backend is, and no password in its address."""
    config = load_config(None, {"OPENAI_BASE_URL": "https://me:pa55@h:8443/v1"})
    (openai,) = (agent for agent in config.agents if isinstance(agent, OpenAIAgentConfig))
    assert "https://me:pa55@h:8443/v1" == openai.base_url
    printed = [agent.get("base_url") for agent in yaml.safe_load(dump_config(config))["agents"]]
    assert [None, "https://me:***@h:8443/v1"] == printed


def test_errors_mask_passwords_too(file: Path) -> None:
    """A URL that is refused is quoted without its password."""
    url = "postgres+asyncpg://user:secret@host/name?password=secret"
    with pytest.raises(ConfigError) as caught:
        load_config(None, {"DATABASE_URL": url})
    assert "postgres+asyncpg://user:***@host/name?password=***" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "secret" not in problems(file, url)[0]


@pytest.mark.parametrize(
    ("parameters", "found"),
    [
        ({"stream_options": "yes"}, "stream_options that are no mapping"),
        ({"seed": {"when": "!!timestamp"}}, None),
    ],
)
def test_parameters_that_no_request_can_carry_are_refused(
    file: Path, parameters: dict[str, Any], found: str | None
) -> None:
    """Default parameters go into every request, so they are refused at start if they can't."""
    agent = {"name": "a", "kind": "openai", "parameters": parameters}
    lines = tree_problems(file, {"agents": [agent]}) if found else []
    assert [
        line for line in lines if "agents[0].parameters" in line and str(found) in line
    ] == lines
    assert bool(lines) is (found is not None)


def test_parameters_that_are_no_json_are_refused(file: Path) -> None:
    """YAML knows dates and bytes, JSON doesn't."""
    text = "agents: [{name: a, kind: openai, parameters: {seed: 2026-01-01}}]"
    (line,) = problems(file, text)
    assert "agents[0].parameters" in line
    assert "what JSON can say" in line


@pytest.mark.parametrize("name", ["", "X B", "X-A:", "X\n", "X-Ä"])
def test_a_header_has_a_headers_name(file: Path, name: str) -> None:
    """A name that no header can have would never be found, and nobody would know why."""
    (problem,) = tree_problems(file, {"server": {"conversation_headers": ["X-A", name]}})
    assert problem.startswith(f"{file}: server.conversation_headers[1]: found ")
    assert problem.endswith(", allowed: the name of a header")
