-- Conversations, what was asked in them, and every word of the answers.
--
-- Ids are texts made by the service; digests are SHA-256 in hex (see db/rows/digest.py). Foreign keys
-- between rows of one save are checked at its end, since it writes the completion first: whether
-- that row is new decides whether anything else of the record is written.

CREATE TABLE conversations (
    conversation_id text NOT NULL,
    owner text NOT NULL,
    client_key text,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT conversations_pkey PRIMARY KEY (conversation_id),
    -- Many rows without a key are fine: NULLs are distinct.
    CONSTRAINT conversations_owner_client_key_key UNIQUE (owner, client_key)
);
COMMENT ON TABLE conversations IS 'One per client key, or per opening of clients that keep no key.';
COMMENT ON COLUMN conversations.owner IS 'The API key''s name; conversations of two owners share nothing.';
COMMENT ON COLUMN conversations.client_key IS 'What the client calls the conversation (X-OpenWebUI-Chat-Id, X-Conversation-Id, metadata.conversation_id); its SHA-256 where it is over 512 bytes.';
COMMENT ON COLUMN conversations.updated_at IS 'When its latest completion ended.';

CREATE TABLE tool_sets (
    digest text NOT NULL,
    tools jsonb NOT NULL,
    CONSTRAINT tool_sets_pkey PRIMARY KEY (digest)
);
COMMENT ON TABLE tool_sets IS 'The tool definitions of requests, once each: clients send the same 24 KB every time.';

CREATE TABLE completions (
    completion_id text NOT NULL,
    conversation_id text NOT NULL,
    owner text NOT NULL,
    agent text NOT NULL,
    model text NOT NULL,
    upstream_id text,
    upstream_model text,
    upstream_created bigint,
    state text NOT NULL,
    finish_reason text,
    error jsonb,
    usage jsonb,
    usage_source text NOT NULL,
    token_count bigint NOT NULL,
    chunk_count bigint NOT NULL,
    ttft_ms double precision,
    duration_ms double precision NOT NULL,
    trace_id text NOT NULL,
    request jsonb NOT NULL,
    tools_digest text,
    metadata jsonb,
    prompt_digest text,
    extra jsonb,
    created_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    client_left_at timestamptz,
    CONSTRAINT completions_pkey PRIMARY KEY (completion_id),
    CONSTRAINT completions_conversation_id_fkey FOREIGN KEY (conversation_id)
        REFERENCES conversations (conversation_id) ON DELETE CASCADE
        DEFERRABLE INITIALLY DEFERRED,
    CONSTRAINT completions_tools_digest_fkey FOREIGN KEY (tools_digest)
        REFERENCES tool_sets (digest) DEFERRABLE INITIALLY DEFERRED,
    -- Only ended completions are kept, so pending and streaming never show here.
    CONSTRAINT completions_state_check CHECK (state IN ('completed', 'failed', 'client_gone')),
    CONSTRAINT completions_usage_source_check
        CHECK (usage_source IN ('provider', 'estimated', 'unknown')),
    CONSTRAINT completions_counts_check CHECK (token_count >= 0 AND chunk_count >= 0)
);
COMMENT ON TABLE completions IS 'One per answer asked for, however it ended.';
COMMENT ON COLUMN completions.agent IS 'Who answered; after a fallback, the last one asked.';
COMMENT ON COLUMN completions.model IS 'The model that the client asked for; upstream_model is what the upstream says it used.';
COMMENT ON COLUMN completions.upstream_created IS 'The upstream''s own `created`, in POSIX seconds.';
COMMENT ON COLUMN completions.state IS 'completed: the full text is kept. failed, client_gone: the partial text is.';
COMMENT ON COLUMN completions.finish_reason IS 'The first choice''s; NULL unless every choice''s had arrived.';
COMMENT ON COLUMN completions.error IS 'The error as the client saw it: code, message, type, param; and kind, our own code, where the upstream had one of its own.';
COMMENT ON COLUMN completions.request IS 'The request''s parameters, without messages, tools and metadata.';
COMMENT ON COLUMN completions.prompt_digest IS 'The digest of the last message sent; the thread above it is the prompt.';
COMMENT ON COLUMN completions.extra IS 'Top-level fields of the upstream''s chunks that we don''t interpret.';
COMMENT ON COLUMN completions.client_left_at IS 'When the client left, whether or not the answer was finished without it.';

-- Listing a caller's completions, page by page.
CREATE INDEX completions_owner_created_at_idx ON completions (owner, created_at, completion_id);
-- Reading and deleting a conversation; checking its foreign key.
CREATE INDEX completions_conversation_id_idx ON completions (conversation_id);

CREATE TABLE messages (
    message_id text NOT NULL,
    conversation_id text NOT NULL,
    completion_id text,
    choice_index integer,
    role text NOT NULL,
    content text,
    content_raw bytea,
    parts jsonb,
    state text NOT NULL,
    digest text NOT NULL,
    -- Not a foreign key: a digest names a message, and several answers may be the same message.
    parent_digest text,
    created_at timestamptz NOT NULL,
    CONSTRAINT messages_pkey PRIMARY KEY (message_id),
    CONSTRAINT messages_completion_id_choice_index_key UNIQUE (completion_id, choice_index),
    CONSTRAINT messages_conversation_id_fkey FOREIGN KEY (conversation_id)
        REFERENCES conversations (conversation_id) ON DELETE CASCADE
        DEFERRABLE INITIALLY DEFERRED,
    CONSTRAINT messages_completion_id_fkey FOREIGN KEY (completion_id)
        REFERENCES completions (completion_id) ON DELETE CASCADE
        DEFERRABLE INITIALLY DEFERRED,
    CONSTRAINT messages_state_check CHECK (state IN ('complete', 'partial')),
    -- An answer is a choice of a completion; what a client sent is neither.
    CONSTRAINT messages_choice_check
        CHECK ((completion_id IS NULL) = (choice_index IS NULL) AND choice_index >= 0)
);
COMMENT ON TABLE messages IS 'A tree, like commits: each message once, below the message that it follows.';
COMMENT ON COLUMN messages.completion_id IS 'Whose answer it is; NULL for what a client sent.';
COMMENT ON COLUMN messages.content IS 'The text, with NUL shown as U+2400 and lone surrogates as U+FFFD.';
COMMENT ON COLUMN messages.content_raw IS 'The exact text, where content could not hold it: UTF-8 with surrogates encoded too.';
COMMENT ON COLUMN messages.parts IS 'Whatever else the message held: tool calls, reasoning, content that is no text; an answer''s choice under "choice". In its strings U+241B and four hex digits stand for a character that jsonb refuses.';
COMMENT ON COLUMN messages.state IS 'partial: the answer broke off.';
COMMENT ON COLUMN messages.parent_digest IS 'The digest of the message before it; NULL for a conversation''s first.';

-- What a client sends again is not stored again. Answers are exempt: each is a row of its own.
CREATE UNIQUE INDEX messages_sent_digest_key ON messages (digest) WHERE completion_id IS NULL;
-- The walk up a thread, and the question which of a request's messages are new.
CREATE INDEX messages_digest_idx ON messages (digest);
-- The walk down: what followed a message, branches included.
CREATE INDEX messages_parent_digest_idx ON messages (parent_digest);
-- Reading and deleting a conversation; checking its foreign key.
CREATE INDEX messages_conversation_id_idx ON messages (conversation_id);
