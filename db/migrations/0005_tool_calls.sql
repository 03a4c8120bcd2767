-- What an agent did between its words: the tools that it called.

CREATE TABLE tool_calls (
    completion_id text NOT NULL,
    turn integer NOT NULL,
    position integer NOT NULL,
    call_id text NOT NULL,
    server text NOT NULL,
    tool text NOT NULL,
    arguments text NOT NULL,
    arguments_raw bytea,
    asked_at timestamptz NOT NULL,
    ended_at timestamptz,
    outcome text NOT NULL,
    result text,
    result_raw bytea,
    bytes bigint NOT NULL,
    is_truncated boolean NOT NULL,
    text_end bigint NOT NULL,
    CONSTRAINT tool_calls_pkey PRIMARY KEY (completion_id, turn, position),
    CONSTRAINT tool_calls_completion_id_fkey FOREIGN KEY (completion_id)
        REFERENCES completions (completion_id) ON DELETE CASCADE
        DEFERRABLE INITIALLY DEFERRED,
    CONSTRAINT tool_calls_outcome_check
        CHECK (outcome IN ('ok', 'error', 'timeout', 'abandoned', 'unknown'))
);
COMMENT ON TABLE tool_calls IS 'The calls of tools that the service made for an answer; a client''s own are in its message.';
COMMENT ON COLUMN tool_calls.turn IS 'Which turn of the answer wanted it, from 1.';
COMMENT ON COLUMN tool_calls.position IS 'Which of that turn''s calls it was, from 0.';
COMMENT ON COLUMN tool_calls.call_id IS 'The model''s name for it; ours where it had none, or one that an earlier call has.';
COMMENT ON COLUMN tool_calls.arguments IS 'JSON, as the model wrote it. Where a text column can''t hold it exactly, arguments_raw does, as UTF-8.';
COMMENT ON COLUMN tool_calls.ended_at IS 'NULL if its end was never told.';
COMMENT ON COLUMN tool_calls.outcome IS 'abandoned: the answer ended meanwhile. unknown: the process died, or the way to the tool broke; perhaps it ran.';
COMMENT ON COLUMN tool_calls.result IS 'What the model was told. result_raw: see arguments.';
COMMENT ON COLUMN tool_calls.bytes IS 'The size of what the tool answered, cut or not.';
COMMENT ON COLUMN tool_calls.text_end IS 'How many characters of the answer''s text had come when its turn ended.';
