-- What whoever runs the service needs: the request's id, and everybody's completions, newest first.

ALTER TABLE completions ADD COLUMN request_id text;
COMMENT ON COLUMN completions.request_id IS 'The request''s x-request-id, the client''s own or ours. NULL in rows of before it was kept.';

-- Everybody's completions, page by page. Each index keeps the list's order behind what it is for, so
-- that a page reads as many rows as it shows. Owners have such an index already. Only the beginning of
-- names that others choose: an index holds no long texts.
CREATE INDEX completions_everybodys_idx ON completions (created_at, completion_id)
    WHERE NOT hidden;
CREATE INDEX completions_everybodys_by_conversation_idx
    ON completions (conversation_id, created_at, completion_id) WHERE NOT hidden;
CREATE INDEX completions_everybodys_by_model_idx
    ON completions (left(model, 200), created_at, completion_id) WHERE NOT hidden;
CREATE INDEX completions_everybodys_by_agent_idx
    ON completions (left(agent, 200), created_at, completion_id) WHERE NOT hidden;
-- Most end well, so an index of the others is small.
CREATE INDEX completions_everybodys_by_state_idx
    ON completions (state, created_at, completion_id) WHERE NOT hidden AND state <> 'completed';
CREATE INDEX completions_everybodys_by_error_idx
    ON completions (left(coalesce(error ->> 'kind', error ->> 'code'), 200), created_at, completion_id)
    WHERE NOT hidden AND error IS NOT NULL;

-- Finding a completion by any of its ids. A client may send one id with all of its requests, and a
-- backend may have one for all of its answers: so these, too, have the list's order.
CREATE INDEX completions_request_id_idx ON completions (request_id, created_at, completion_id)
    WHERE NOT hidden AND request_id IS NOT NULL;
CREATE INDEX completions_trace_id_idx ON completions (trace_id, created_at, completion_id)
    WHERE NOT hidden;
CREATE INDEX completions_upstream_id_idx
    ON completions (left(upstream_id, 200), created_at, completion_id)
    WHERE NOT hidden AND upstream_id IS NOT NULL;
