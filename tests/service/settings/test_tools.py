"""Agents' tools and files in the configuration: what is refused, and what is shown nowhere."""

from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from service.settings.checking import ConfigError
from service.settings.config import Config, OpenAIAgentConfig, dump_config, load_config
from service.settings.file import dump_yaml
from service.settings.reload import changed_keys
from service.settings.tools import (
    MOST_CONTEXT_BYTES,
    ContextFile,
    ToolsConfig,
    ToolServerConfig,
    filled_in,
    instructions,
    variables,
)

SECRET = "Bearer sk-secret-0123456789"
SERVER: dict[str, Any] = {"name": "docs", "url": "http://127.0.0.1:9000/mcp"}
COMMAND: dict[str, Any] = {"name": "files", "command": "files-server", "args": ["--quiet"]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def load(file: Path, **fields: Any) -> Config:
    """The configuration of a file with one agent that has these keys."""
    agent = {"name": "a", "kind": "openai", **fields}
    file.write_text(dump_yaml({"agents": [agent]}), "utf-8")
    return load_config(file, {})


def problems(file: Path, **fields: Any) -> list[str]:
    """What is said about it, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        load(file, **fields)
    return [line.removeprefix(f"{file}: ") for line in str(caught.value).split("\n")]


def tools_of(config: Config) -> ToolsConfig:
    (agent,) = config.agents
    assert agent.tools is not None
    return agent.tools


# --- servers --------------------------------------------------------------------------------------


def test_a_server_has_defaults(file: Path) -> None:
    """A name and an address are enough."""
    tools = tools_of(load(file, tools={"servers": [SERVER]}))
    assert ToolsConfig(servers=(ToolServerConfig(**SERVER),)) == tools
    (server,) = tools.servers
    assert (("*",), (), 30.0, 262144) == (
        server.allow,
        server.deny,
        server.timeout_seconds,
        server.max_result_bytes,
    )


@pytest.mark.parametrize("name", ["d", "docs-2", "a_b_c", "X" * 32, "-"])
def test_a_servers_name_may_be_part_of_a_functions(file: Path, name: str) -> None:
    """Names are of those characters that functions' names may have."""
    (server,) = tools_of(load(file, tools={"servers": [{**SERVER, "name": name}]})).servers
    assert name == server.name


@pytest.mark.parametrize("name", ["", "a__b", "_a", "a_", "a.b", "a b", "ä", "X" * 33, "a\n", 5])
def test_a_servers_name_leaves_no_doubt(file: Path, name: Any) -> None:
    """Where a server's name ends and a tool's begins can be told, and what is left is room enough."""
    (line,) = problems(file, tools={"servers": [{**SERVER, "name": name}]})
    assert line.startswith("agents[0].tools.servers[0].name: found ")
    assert line.endswith("allowed: 1 to 32 letters, digits, - and single _ between them")


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        (
            {"servers": [SERVER, SERVER]},
            ".servers[1].name: found 'docs', allowed: a name used once, by no built-in tools either",
        ),
        (
            {"builtin": ["clock"], "servers": [{**SERVER, "name": "clock"}]},
            ".servers[0].name: found 'clock', allowed: a name used once, by no built-in tools either",
        ),
        (
            {"servers": [{"name": "docs"}]},
            ".servers[0]: found neither, allowed: either a url or a command",
        ),
        (
            {"servers": [{**SERVER, **COMMAND}], "allow_commands": True},
            ".servers[0]: found both, allowed: either a url or a command",
        ),
        (
            {"servers": [COMMAND]},
            ".servers[0].command: found a command, allowed: no command, unless "
            "agents[0].tools.allow_commands is true",
        ),
        (
            {"servers": [{**COMMAND, "headers": {"A": "b"}}], "allow_commands": True},
            ".servers[0].headers: found headers of a command, allowed: env, for a command",
        ),
        (
            {"servers": [{**SERVER, "env": {"A": "b"}}]},
            ".servers[0].env: found env of a url, allowed: headers, for a url",
        ),
        (
            {"servers": [{**SERVER, "args": ["b"]}]},
            ".servers[0].args: found args of a url, allowed: headers, for a url",
        ),
        ({"builtin": ["clocks"]}, ".builtin[0]: found 'clocks', allowed: clock or dice"),
    ],
)
def test_keys_of_tools_must_go_together(file: Path, tools: Any, expected: str) -> None:
    """Names are unique, a server is reached in one way, and a command must be allowed."""
    found = problems(file, tools=tools)
    assert f"agents[0].tools{expected}" in found


def test_a_command_may_be_allowed(file: Path) -> None:
    """`allow_commands` is the operator's word."""
    tools = tools_of(load(file, tools={"servers": [COMMAND], "allow_commands": True}))
    assert ("files-server", ("--quiet",)) == (tools.servers[0].command, tools.servers[0].args)


# --- secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tools",
    [
        {"servers": [{**SERVER, "headers": SECRET}]},
        {"servers": [{**SERVER, "headers": [SECRET]}]},
        {"servers": [{**SERVER, "headers": {"Authorization": [SECRET]}}]},
        {"servers": [{**SERVER, "headers": {"Author ization": SECRET}}]},
        {"servers": [{**SERVER, "headers": {"Authorization": f"{SECRET}\n"}}]},
        {"servers": [{**SERVER, "headers": {"Authorization": ""}}]},
        {"servers": [{**SERVER, "header": {"Authorization": SECRET}}]},
        {"servers": [{**SERVER, SECRET: 1}]},
        {"servers": [SECRET]},
        {"servers": {"docs": {"headers": {"Authorization": SECRET}}}},
        {"servers": [[{"headers": {"Authorization": SECRET}}]]},
        [{"headers": {"A": SECRET}}],
        {"servers": [{**COMMAND, "env": {"T OKEN": SECRET}}], "allow_commands": True},
        {"servers": [{**COMMAND, "env": {"TOKEN": f"{SECRET}\0"}}], "allow_commands": True},
    ],
)
def test_what_may_be_a_secret_is_described(file: Path, tools: Any) -> None:
    """What doesn't fit where headers stand is named by its place, and its text isn't shown."""
    lines = problems(file, tools=tools)
    assert lines
    assert all(line.startswith("agents[0].tools") for line in lines)
    assert "secret" not in "\n".join(lines)


def test_a_list_of_agents_that_is_a_mapping_shows_no_secret(file: Path) -> None:
    """The same holds for what stands above."""
    server = {"headers": {"A": SECRET}}
    file.write_text(dump_yaml({"agents": {"a": {"tools": {"servers": [server]}}}}), "utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(file, {})
    assert f"{file}: agents: found a mapping of keys, allowed: a list" == str(caught.value)


def test_secrets_are_printed_nowhere(file: Path) -> None:
    """Neither `repr` nor `--print-config` shows a header's value, nor a variable's; names of variables are
    shown, as they are none."""
    headers = {"Authorization": SECRET, "X-Token": "${TOKEN}", "X-Other": "Bearer ${OTHER}"}
    one = {**SERVER, "url": "http://u:sk-secret@h/mcp?api_key=sk-secret", "headers": headers}
    two = {**COMMAND, "env": {"KEY": SECRET}}
    config = load(file, tools={"servers": [one, two], "allow_commands": True})
    printed = dump_config(config)
    assert "secret" not in repr(config.agents[0]) + printed
    assert "X-Token: ${TOKEN}" in printed
    assert "X-Other: Bearer ${OTHER}" in printed
    assert "Authorization: '***'" in printed


def test_variables_are_filled_in(file: Path) -> None:
    """`${NAME}` is a variable's value, wherever it stands; one that isn't set is a KeyError."""
    headers = {"Authorization": "Bearer ${ONE}", "X-Two": "${ONE}/${TWO}", "X-Three": "$ONE {ONE}"}
    (server,) = tools_of(load(file, tools={"servers": [{**SERVER, "headers": headers}]})).servers
    assert ["ONE", "ONE", "TWO"] == list(variables(server.headers))
    assert {
        "Authorization": "Bearer 1",
        "X-Two": "1/${ONE}",
        "X-Three": "$ONE {ONE}",
    } == filled_in(server.headers, {"ONE": "1", "TWO": "${ONE}"})
    with pytest.raises(KeyError):
        filled_in(server.headers, {"ONE": "1"})


# --- files ----------------------------------------------------------------------------------------


def context_of(config: Config) -> tuple[ContextFile, ...]:
    (agent,) = config.agents
    assert isinstance(agent, OpenAIAgentConfig)
    return agent.context


def test_files_are_read_with_the_configuration(file: Path, tmp_path: Path) -> None:
    """What stands in a file is part of the configuration: a reload sees that it changed, and names the key;
    what is printed is its path."""
    path = tmp_path / "handbook.md"
    path.write_text("Open at nine.", "utf-8")
    before = load(file, context=[str(path)])
    assert (ContextFile(str(path), "Open at nine."),) == context_of(before)
    assert f"  context:\n  - {path}\n" in dump_config(before)
    assert "nine" not in repr(before) + dump_config(before)
    path.write_text("Open at ten.", "utf-8")
    after = load(file, context=[str(path)])
    assert ["agents[a].context"] == changed_keys(before, after)
    assert [] == changed_keys(after, load(file, context=[str(path)]))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("nowhere.md", " (No such file or directory)"),
        (".", " (Is a directory)"),
        ("a\0b", " (ValueError)"),
        ("", ""),
        (5, ""),
    ],
)
def test_a_file_that_cant_be_read_is_named(file: Path, wrong: Any, why: str) -> None:
    """A path without a readable file is a problem of the configuration."""
    allowed = f"the path of a file that can be read, in UTF-8{why}"
    expected = f"agents[0].context[0]: found {wrong!r}, allowed: {allowed}"
    assert [expected] == problems(file, context=[wrong])


def test_files_are_text_of_a_bounded_size(file: Path, tmp_path: Path) -> None:
    """They are UTF-8, and all of an agent's together are of a size that can be sent with each request."""
    latin, large, half = (tmp_path / name for name in ("latin", "large", "half"))
    latin.write_bytes("Käse".encode("latin-1"))
    large.write_text("x" * (MOST_CONTEXT_BYTES + 1), "utf-8")
    half.write_text("x" * (MOST_CONTEXT_BYTES // 2), "utf-8")
    assert ["(UnicodeDecodeError)"] == [
        line.split()[-1] for line in problems(file, context=[str(latin)])
    ]
    assert ["a file of 1048576 bytes at most"] == [
        line.partition("allowed: ")[2] for line in problems(file, context=[str(large)])
    ]
    assert 2 == len(context_of(load(file, context=[str(half)] * 2)))
    (line,) = problems(file, context=[str(half)] * 3)
    assert "agents[0].context: " in line
    assert line.endswith("files of 1048576 bytes together, as they are sent with each request")
    assert len(line) < 300


def test_files_follow_the_preamble() -> None:
    """Preamble and files are one text, in the order of the configuration, with blank lines between."""
    files = (ContextFile("1", "One."), ContextFile("2", "Two."))
    assert "Be kind.\n\nOne.\n\nTwo." == instructions("Be kind.", files)
    assert "One." == instructions(None, files[:1])
    assert "Be kind." == instructions("Be kind.", ())
    assert None is instructions(None, ())


def test_a_changed_server_is_a_changed_key(file: Path) -> None:
    """A reload names the list of servers, and no value."""
    before = load(file, tools={"servers": [SERVER]})
    (agent,) = before.agents
    assert isinstance(agent, OpenAIAgentConfig)
    assert agent.tools is not None
    changed = ToolServerConfig(**SERVER, headers={"A": SECRET})
    after = evolve(before, agents=(evolve(agent, tools=evolve(agent.tools, servers=(changed,))),))
    assert ["agents[a].tools.servers"] == changed_keys(before, after)
