-- +goose Up

-- What attempts took that ran in processes of their own. Apart from task: few tasks have a row, and none of
-- the rows of task grows.
CREATE TABLE task_usage (
    task_id     uuid             PRIMARY KEY,
    attempt     int              NOT NULL,
    peak_memory bigint           NOT NULL,
    cpu_seconds double precision NOT NULL,
    CONSTRAINT task_usage_task_fkey FOREIGN KEY (task_id) REFERENCES task ON DELETE CASCADE
);

COMMENT ON TABLE task_usage IS 'What the last attempt of a task took that ran in a process of its own.';
COMMENT ON COLUMN task_usage.peak_memory IS 'The most memory that the process had resident, in bytes; 0: not known.';
COMMENT ON COLUMN task_usage.cpu_seconds IS 'Processor time of the process and of those that it has waited for.';

-- +goose StatementBegin
CREATE FUNCTION task_turn_used(
    used_ids uuid[], peak_memories bigint[], cpu_seconds float8[],
    worker uuid, known int[], runnable int[], wanted int, recovering boolean, holding uuid[],
    ids uuid[], attempts int[], states text[], results text[], errors text[], sole text, quick boolean,
    searching boolean, seen_kinds int[], seen_ranks int[], seen_heads timestamptz[], impatient boolean)
RETURNS SETOF text LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT task_turn(worker, known, runnable, wanted, recovering, holding, ids, attempts, states, results, errors, sole, quick,
        searching, seen_kinds, seen_ranks, seen_heads, impatient)::text;
    -- Whoever has lost the task has not written its row just now.
    INSERT INTO task_usage AS o (task_id, attempt, peak_memory, cpu_seconds)
    SELECT t.id, t.attempt, u.peak_memory, u.cpu_seconds
    FROM unnest(used_ids, peak_memories, cpu_seconds) u (id, peak_memory, cpu_seconds) JOIN task t ON t.id = u.id
    WHERE t.xmin = pg_current_xact_id()::xid
    ON CONFLICT (task_id) DO UPDATE SET attempt = excluded.attempt, peak_memory = excluded.peak_memory, cpu_seconds = excluded.cpu_seconds;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION task_turn_used IS
    'A turn, as task_turn has it, that also records what some of the attempts took that it ends. The events come as the text of their records.';

-- +goose Down
DROP FUNCTION task_turn_used;
DROP TABLE task_usage;
