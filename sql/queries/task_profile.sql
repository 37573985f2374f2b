-- name: TaskProfileSave :execrows
-- Keeps a profile of a task that the holder still holds; that of an earlier attempt is replaced. The share on the task's
-- row keeps a sweep out until this commits. 0 rows: the lock is lost.
INSERT INTO task_profile (task_id, name, data)
SELECT t.id, @name::text, @data::bytea FROM task t
WHERE t.id = @task_id::uuid AND t.app_lock = @holder::uuid AND t.attempt = @attempt::int
  AND t.state IN ('running', 'canceling')
FOR SHARE
ON CONFLICT (task_id, name) DO UPDATE SET data = excluded.data;

-- name: TaskProfileNames :many
-- Which profiles of a task there are.
SELECT name FROM task_profile WHERE task_id = @task_id::uuid ORDER BY name;

-- name: TaskProfileGet :one
-- A profile of a task.
SELECT data FROM task_profile WHERE task_id = @task_id::uuid AND name = @name::text;
