"""Fills a database with conversations of ten turns of five owners: `benchmarks.questions.history`
reads them.

Two messages a turn; every other conversation is the caller's, one in fifty is hidden. One completion in
two hundred has failed.
"""

from contextlib import closing

import psycopg2

TURNS = 10
OWNER = "anonymous"
"""Who the service takes a caller without a key for; owns every other conversation."""

_NUMBERS = "generate_series(%(first)s, %(last)s) AS conversation"
_TURN = f"{_NUMBERS}, generate_series(0, {TURNS - 1}) AS turn"
_OWNED = f"CASE conversation %% 2 WHEN 0 THEN '{OWNER}' ELSE 'owner-' || conversation %% 8 END"
_AT = "timestamptz '2026-01-01' + conversation * interval '30 s' + turn * interval '40 s'"
_DIGEST = "encode(sha256((conversation || '/' || {})::text::bytea), 'hex')"
_TALK = "'conv_' || lpad(conversation::text, 9, '0')"
_ID = "'chatcmpl-' || lpad((conversation * 10 + turn)::text, 10, '0')"
_HAS_FAILED = "(conversation * 10 + turn) %% 207 = 0"
_TAPE = (
    """'{"patterns":[{"key":"content","chunk":{"choices":[{"index":0,"delta":{"content":""}}]}}],"""
    """"parts":[{"pattern":0,"count":160,"choice":0,"start":0}]}'"""
)
_WORDS = "repeat(md5((conversation * 10 + turn)::text) || ' ', {})"

# Foreign keys are not checked row by row, and indexes are made when the rows are there.
_IN_A_HURRY = "SET session_replication_role = replica; SET maintenance_work_mem = '256MB'"
_INDEXES = """
SELECT indexname, indexdef FROM pg_indexes
WHERE schemaname = current_schema AND tablename IN ('conversations', 'completions', 'messages')
AND NOT EXISTS (SELECT FROM pg_constraint WHERE conname = indexname)
"""
_FILL = (
    f"""
    INSERT INTO conversations (conversation_id, owner, created_at, updated_at)
    SELECT {_TALK}, {_OWNED}, {_AT}, {_AT} + interval '6 min'
    FROM {_NUMBERS}, (VALUES (0)) AS first (turn)
    """,
    """
    INSERT INTO tool_sets SELECT 'tools-' || kind, jsonb_agg(jsonb_build_object('type', 'function',
        'function', jsonb_build_object('name', 'f' || n, 'description', repeat(md5((kind * n)::text), 18))))
    FROM generate_series(1, 36) AS n, generate_series(0, 299) AS kind GROUP BY kind ON CONFLICT DO NOTHING
    """,
    # Nine of ten are of one environment; one conversation has its chat; the last hundredth is late.
    f"""
    INSERT INTO completions (completion_id, conversation_id, owner, agent, model, state,
        finish_reason, usage, usage_source, token_count, chunk_count, ttft_ms, duration_ms,
        trace_id, request, tools_digest, metadata, prompt_digest, created_at, finished_at, hidden,
        tape, tape_lengths, request_id, upstream_id, error)
    SELECT {_ID}, {_TALK}, {_OWNED},
        CASE WHEN conversation %% 1000 = 6 AND turn %% 3 <> 1 THEN 'spare' ELSE 'demo' END,
        CASE WHEN conversation %% 1000 = 2 THEN 'rare' ELSE 'model-' || turn %% 3 END,
        CASE WHEN {_HAS_FAILED} THEN 'failed' ELSE 'completed' END,
        CASE WHEN NOT {_HAS_FAILED} THEN 'stop' END,
        '{{"prompt_tokens": 90, "completion_tokens": 160}}', 'provider',
        160, 160, 200, 4000, md5(conversation::text), '{{"stream": true, "temperature": 0.7}}',
        CASE WHEN conversation %% 10 = 0 THEN 'tools-' || conversation / 10 %% 300 END,
        jsonb_build_object('chat', conversation::text,
            'env', CASE WHEN conversation %% 20 < 18 THEN 'prod' ELSE 'test' END)
        || CASE WHEN conversation > %(last)s * 0.99 THEN '{{"late": "yes"}}'::jsonb ELSE '{{}}' END,
        {_DIGEST.format("2 * turn")}, {_AT}, {_AT} + interval '4 s', conversation %% 50 = 4,
        {_TAPE}, decode(repeat('4', 160), 'hex'), 'req_' || {_ID},
        'up-' || md5((conversation * 10 + turn)::text),
        CASE WHEN {_HAS_FAILED} THEN jsonb_build_object('code', 'idle_timeout', 'message', 'Why.') END
    FROM {_TURN}
    """,
    f"""
    INSERT INTO messages (message_id, conversation_id, completion_id, choice_index, role, content,
        state, digest, parent_digest, created_at, hidden)
    SELECT 'msg_' || left({_DIGEST.format("2 * turn")}, 32), {_TALK}, NULL, NULL::integer, 'user',
        {_WORDS.format(3)}, 'complete', {_DIGEST.format("2 * turn")},
        CASE WHEN turn > 0 THEN {_DIGEST.format("2 * turn - 1")} END, {_AT},
        conversation %% 50 = 4
    FROM {_TURN}
    UNION ALL
    SELECT {_ID} || '-0', {_TALK}, {_ID}, 0, 'assistant', {_WORDS.format(20)}, 'complete',
        {_DIGEST.format("2 * turn + 1")}, {_DIGEST.format("2 * turn")}, {_AT} + interval '4 s',
        conversation %% 50 = 4
    FROM {_TURN}
    """,
    """
    INSERT INTO deletions SELECT 'chatcmpl-deleted-' || n, 'anonymous', now(), now()
    FROM generate_series(%(first)s, %(last)s) AS n
    """,
    """
    INSERT INTO completion_labels (label, created_at, completion_id)
    SELECT completion_label(owner, key, value), created_at, completion_id
    FROM completions, jsonb_each_text(metadata)
    WHERE NOT hidden AND conversation_id >= 'conv_' || lpad(%(first)s::text, 9, '0')
    """,
)


def fill(dsn: str, first: int, last: int) -> None:
    """Add the conversations with these numbers, both included, and make the planner know of them."""
    with closing(psycopg2.connect(dsn)) as connection:
        with connection, connection.cursor() as cursor:
            cursor.execute(_IN_A_HURRY)
            cursor.execute(_INDEXES)
            indexes = cursor.fetchall()
            for name, _ in indexes:
                cursor.execute(f"DROP INDEX {name}")
            for statement in _FILL:
                cursor.execute(statement, {"first": first, "last": last})
            for _, definition in indexes:
                cursor.execute(definition)
        connection.autocommit = True
        connection.cursor().execute("VACUUM ANALYZE")
