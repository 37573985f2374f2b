-- name: CreatedResourceSave :execrows
-- Records what a task created while the holder still holds it. The share on the task's row keeps a
-- sweep out until this commits. 0 rows: the lock is lost.
INSERT INTO created_resource (task_id, ordinal, resource)
SELECT t.id, @ordinal::int, @resource::text FROM task t
WHERE t.id = @task_id::uuid AND t.app_lock = @holder::uuid AND t.attempt = @attempt::int
  AND t.state IN ('running', 'canceling')
FOR SHARE
ON CONFLICT (task_id, ordinal) DO UPDATE SET resource = excluded.resource;

-- name: CreatedResourceList :many
-- What these tasks have created, in the order in which each has.
SELECT task_id, resource FROM created_resource WHERE task_id = ANY (@task_ids::uuid[]) ORDER BY task_id, ordinal;
