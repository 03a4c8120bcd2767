-- What reading an answer from any position needs, and listing completions by how they ended.

-- json, not jsonb: the keys of a chunk keep their order. Rows of before have no tape.
ALTER TABLE completions ADD COLUMN tape json;
ALTER TABLE completions ADD COLUMN tape_lengths bytea;
COMMENT ON COLUMN completions.tape IS 'The answer''s chunks in their order, without the texts of its messages; docs/tape.md explains it. NULL: not known, or too large.';
COMMENT ON COLUMN completions.tape_lengths IS 'How many characters each text on the tape has, in hexadecimal digits: encode(tape_lengths, ''hex''). f is fifteen and more, the next digit counting on.';

CREATE INDEX completions_listed_by_state_idx
    ON completions (owner, state, created_at, completion_id) WHERE NOT hidden;
