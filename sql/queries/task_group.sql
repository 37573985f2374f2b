-- name: TaskGroupCreate :exec
-- A second send of the same id changes nothing.
INSERT INTO task_group (id, description) VALUES (@id::uuid, @description::text) ON CONFLICT (id) DO NOTHING;

-- name: TaskGroupGet :one
SELECT g.id, g.description, g.all_tasks_dispatched, g.created_at,
    count(t.id) FILTER (WHERE t.state = 'waiting')::int AS waiting,
    count(t.id) FILTER (WHERE t.state = 'skipped')::int AS skipped,
    count(t.id) FILTER (WHERE t.state = 'running')::int AS running,
    count(t.id) FILTER (WHERE t.state = 'completed')::int AS completed,
    count(t.id) FILTER (WHERE t.state = 'canceled')::int AS canceled,
    count(t.id) FILTER (WHERE t.state = 'failed')::int AS failed,
    count(t.id) FILTER (WHERE t.state = 'canceling')::int AS canceling
FROM task_group g LEFT JOIN task t ON t.task_group = g.id
WHERE g.id = @id::uuid GROUP BY g.id;

-- name: TaskGroupClose :execrows
-- Marks that all its tasks are dispatched.
UPDATE task_group SET all_tasks_dispatched = true WHERE id = @id::uuid;

-- name: TaskGroupUnfinished :many
-- The tasks of a group that can still be canceled, in the order of their ids, after one.
SELECT t.id FROM task t WHERE t.task_group = @id::uuid AND t.state IN ('waiting', 'running') AND t.id > @after::uuid
ORDER BY t.id LIMIT @most::int;
