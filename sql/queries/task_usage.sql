-- name: TaskUsageGet :one
-- What the last attempt took that ran in a process of its own.
SELECT attempt, peak_memory, cpu_seconds FROM task_usage WHERE task_id = @task_id::uuid;
