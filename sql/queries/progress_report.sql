-- name: ProgressReportSave :execrows
-- Writes a report of a task that the holder still holds. The share on the task's row keeps a sweep
-- out until this commits. 0 rows: the lock is lost.
INSERT INTO progress_report (task_id, ordinal, message, code, state, total, done, suffix)
SELECT t.id, @ordinal::int, @message::text, @code::text, (@state::text)::task_state, sqlc.narg(total)::bigint, @done::bigint, sqlc.narg(suffix)::text
FROM task t WHERE t.id = @task_id::uuid AND t.app_lock = @holder::uuid AND t.attempt = @attempt::int
  AND t.state IN ('running', 'canceling')
FOR SHARE
ON CONFLICT (task_id, ordinal) DO UPDATE SET message = excluded.message, code = excluded.code,
    state = excluded.state, total = excluded.total, done = excluded.done, suffix = excluded.suffix;

-- name: ProgressReportList :many
-- The reports of these tasks.
SELECT p.task_id, p.ordinal, p.message, p.code, p.state::text AS state, p.total, p.done, p.suffix
FROM progress_report p WHERE p.task_id = ANY (@task_ids::uuid[]) ORDER BY p.task_id, p.ordinal;

-- name: ProgressReportSum :many
-- The reports of the tasks of each of these groups added up by message and code.
SELECT t.task_group, p.message, p.code, p.suffix, coalesce(sum(p.total), 0)::bigint AS total, sum(p.done)::bigint AS done
FROM progress_report p JOIN task t ON t.id = p.task_id WHERE t.task_group = ANY (@task_groups::uuid[])
GROUP BY t.task_group, p.message, p.code, p.suffix ORDER BY p.code, p.message;
