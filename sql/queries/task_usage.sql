-- name: TaskUsageList :many
-- What the last attempts of these tasks took that ran in processes of their own.
SELECT task_id, attempt, peak_memory, cpu_seconds FROM task_usage WHERE task_id = ANY (@task_ids::uuid[]);
