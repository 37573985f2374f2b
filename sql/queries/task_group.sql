-- name: TaskGroupCreate :exec
-- A second send of the same id changes nothing.
INSERT INTO task_group (id, description) VALUES (@id::uuid, @description::text) ON CONFLICT (id) DO NOTHING;

-- name: TaskGroupRead :many
-- These groups, with how many of their tasks are in which state.
SELECT g.id, g.description, g.all_tasks_dispatched, g.created_at,
    count(t.id) FILTER (WHERE t.state = 'waiting')::int AS waiting,
    count(t.id) FILTER (WHERE t.state = 'skipped')::int AS skipped,
    count(t.id) FILTER (WHERE t.state = 'running')::int AS running,
    count(t.id) FILTER (WHERE t.state = 'completed')::int AS completed,
    count(t.id) FILTER (WHERE t.state = 'canceled')::int AS canceled,
    count(t.id) FILTER (WHERE t.state = 'failed')::int AS failed,
    count(t.id) FILTER (WHERE t.state = 'canceling')::int AS canceling
FROM task_group g LEFT JOIN task t ON t.task_group = g.id
WHERE g.id = ANY (@ids::uuid[]) GROUP BY g.id;

-- name: TaskGroupClose :execrows
-- Marks that all its tasks are dispatched.
UPDATE task_group SET all_tasks_dispatched = true WHERE id = @id::uuid;

-- name: TaskGroupUnfinished :many
-- The tasks of a group that can still be canceled, in the order of their ids, after one.
SELECT t.id FROM task t WHERE t.task_group = @id::uuid AND t.state IN ('waiting', 'running') AND t.id > @after::uuid
ORDER BY t.id LIMIT @most::int;

-- name: TaskOfGroups :many
-- The tasks of these groups, by age; of a user only those that the user has one of these roles on.
SELECT t.task_group, t.id, t.state::text AS state, k.name, t.created_at, t.unblocked_at, t.started_at, t.finished_at
FROM task t JOIN task_kind k ON k.id = t.kind
WHERE t.task_group = ANY (@task_groups::uuid[])
  AND (sqlc.narg(user_id)::int IS NULL
    -- Counted, not EXISTS: see TaskPurge.
    OR (SELECT count(*) FROM user_role r WHERE r.user_id = sqlc.narg(user_id)::int AND r.role = ANY (@roles::text[]) AND r.model = '') > 0
    OR (SELECT count(*) FROM user_role r WHERE r.user_id = sqlc.narg(user_id)::int AND r.role = ANY (@roles::text[])
        AND r.model = 'core.task' AND r.object = t.id::text) > 0)
ORDER BY t.id;

-- name: TaskGroupPermitted :one
-- How many tasks a group has, and on how many of them a user has one of the roles to view them, and one of these roles.
SELECT count(*)::int AS tasks,
    -- Counted, not EXISTS: see TaskPurge.
    count(*) FILTER (WHERE
        (SELECT count(*) FROM user_role r WHERE r.user_id = @user_id::int AND r.role = ANY (@view::text[]) AND r.model = '') > 0
        OR (SELECT count(*) FROM user_role r WHERE r.user_id = @user_id::int AND r.role = ANY (@view::text[])
            AND r.model = 'core.task' AND r.object = t.id::text) > 0)::int AS visible,
    count(*) FILTER (WHERE
        (SELECT count(*) FROM user_role r WHERE r.user_id = @user_id::int AND r.role = ANY (@roles::text[]) AND r.model = '') > 0
        OR (SELECT count(*) FROM user_role r WHERE r.user_id = @user_id::int AND r.role = ANY (@roles::text[])
            AND r.model = 'core.task' AND r.object = t.id::text) > 0)::int AS permitted
FROM task t WHERE t.task_group = @task_group::uuid;
