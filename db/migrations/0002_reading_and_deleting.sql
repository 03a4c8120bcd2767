-- What reading and deleting through the API need: what is hidden, labels, deletions, indexes.

-- `store: false` hides a completion from the API. The flag is kept where lists are made, so that
-- an index can leave out what is hidden: a list never reads past rows that it may not show.
ALTER TABLE conversations ADD COLUMN hidden boolean NOT NULL DEFAULT false;
ALTER TABLE completions ADD COLUMN hidden boolean NOT NULL DEFAULT false;
ALTER TABLE messages ADD COLUMN hidden boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN conversations.hidden IS 'Every completion in it is hidden.';
COMMENT ON COLUMN completions.hidden IS 'Asked for with store: false, so the API never shows it.';
COMMENT ON COLUMN messages.hidden IS 'Only hidden completions have it: as their answer, or in what they were sent.';

-- An index by metadata that keeps the list's order, which no index on the jsonb column can: a
-- page of a filtered list reads as many rows as it shows, be the filter rare or common.
CREATE TABLE completion_labels (
    label text NOT NULL,
    created_at timestamptz NOT NULL,
    completion_id text NOT NULL,
    CONSTRAINT completion_labels_pkey PRIMARY KEY (label, created_at, completion_id),
    CONSTRAINT completion_labels_completion_id_fkey FOREIGN KEY (completion_id)
        REFERENCES completions (completion_id) ON DELETE CASCADE
);
COMMENT ON TABLE completion_labels IS 'One per pair of a visible completion''s metadata, for finding it by that pair.';
COMMENT ON COLUMN completion_labels.label IS 'completion_label(owner, key, value).';
COMMENT ON COLUMN completion_labels.created_at IS 'The completion''s.';
-- Deleting a completion, changing its metadata.
CREATE INDEX completion_labels_completion_id_idx ON completion_labels (completion_id);

-- A digest, since an index can't hold texts of any length. The lengths keep ('a', 'bc') and
-- ('ab', 'c') apart.
CREATE FUNCTION completion_label(owner text, key text, value text) RETURNS text LANGUAGE sql STABLE
RETURN encode(
    sha256(convert_to(length(owner) || ' ' || owner || length(key) || ' ' || key || value, 'UTF8')),
    'hex'
);

CREATE TABLE deletions (
    id text NOT NULL,
    owner text NOT NULL,
    created_at timestamptz NOT NULL,
    deleted_at timestamptz NOT NULL,
    CONSTRAINT deletions_pkey PRIMARY KEY (id)
);
COMMENT ON TABLE deletions IS 'What was deleted through the API: saving it again brings nothing back, and a list goes on after it.';
COMMENT ON COLUMN deletions.id IS 'The id of a completion, or of the conversation that went with its last completion.';
COMMENT ON COLUMN deletions.created_at IS 'When the deleted was created, which was its place in the list.';

-- Lists, page by page. Only the beginning of a model's name: an index holds no long texts.
DROP INDEX completions_owner_created_at_idx;
CREATE INDEX completions_listed_idx ON completions (owner, created_at, completion_id)
    WHERE NOT hidden;
CREATE INDEX completions_listed_by_model_idx
    ON completions (owner, left(model, 200), created_at, completion_id) WHERE NOT hidden;
CREATE INDEX conversations_listed_idx ON conversations (owner, created_at, conversation_id)
    WHERE NOT hidden;
-- A conversation's nodes, page by page. Also deleting it, and checking its foreign keys.
DROP INDEX messages_conversation_id_idx;
CREATE INDEX messages_conversation_id_created_at_idx
    ON messages (conversation_id, created_at, message_id);
DROP INDEX completions_conversation_id_idx;
CREATE INDEX completions_conversation_id_finished_at_idx
    ON completions (conversation_id, finished_at, completion_id);
-- Whether a message or a tool set is still in use.
CREATE INDEX completions_prompt_digest_idx ON completions (prompt_digest);
CREATE INDEX completions_tools_digest_idx ON completions (tools_digest)
    WHERE tools_digest IS NOT NULL;

-- The rows that are there. Last, since no table can be altered whose rows have checks pending.
UPDATE completions SET hidden = true WHERE request -> 'store' = 'false';
UPDATE messages SET hidden = true
WHERE conversation_id IN (SELECT conversation_id FROM completions WHERE hidden);
WITH RECURSIVE shown AS (
    SELECT messages.digest, messages.parent_digest
    FROM completions JOIN messages ON messages.digest = completions.prompt_digest
    WHERE NOT completions.hidden AND messages.hidden
    UNION
    SELECT messages.digest, messages.parent_digest
    FROM shown JOIN messages ON messages.digest = shown.parent_digest
)
UPDATE messages SET hidden = false WHERE digest IN (SELECT digest FROM shown);
UPDATE messages SET hidden = completions.hidden FROM completions
WHERE completions.completion_id = messages.completion_id AND messages.hidden <> completions.hidden;
UPDATE conversations SET hidden = true
WHERE NOT EXISTS (
    SELECT FROM completions
    WHERE completions.conversation_id = conversations.conversation_id AND NOT completions.hidden
);

INSERT INTO completion_labels (label, created_at, completion_id)
SELECT completion_label(owner, key, value), created_at, completion_id
FROM completions, jsonb_each_text(metadata)
WHERE NOT hidden AND jsonb_typeof(metadata) = 'object' AND value IS NOT NULL;
