-- name: TaskKindList :many
-- The kinds with these ids.
SELECT * FROM task_kind WHERE id = ANY (@ids::int[]) ORDER BY id;
