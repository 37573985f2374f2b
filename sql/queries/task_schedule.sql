-- name: TaskScheduleSave :one
-- Adds a schedule, or replaces the one of that name, if it may. The id is the caller's and new: sent again, the
-- statement finds it there and changes nothing. No row: the name is taken, or was until this ended.
WITH saved AS (
    INSERT INTO task_schedule (id, name, task_name, args, exclusive, shared, priority, dispatch_interval, cron, next_dispatch)
    VALUES (@id::uuid, @name::text, @task_name::text, (@args::text)::json, @exclusive::text[], @shared::text[], @priority::int,
            make_interval(secs => sqlc.narg(interval_seconds)::float8), sqlc.narg(cron)::text,
            coalesce(sqlc.narg(next_dispatch)::timestamptz, now() + make_interval(secs => @delay_seconds::float8)))
    ON CONFLICT (name) DO UPDATE SET id = excluded.id, task_name = excluded.task_name, args = excluded.args,
        exclusive = excluded.exclusive, shared = excluded.shared, priority = excluded.priority,
        dispatch_interval = excluded.dispatch_interval, cron = excluded.cron, next_dispatch = excluded.next_dispatch
        WHERE task_schedule.id <> excluded.id AND @replace::bool
    RETURNING id, next_dispatch
)
SELECT s.id, s.next_dispatch FROM saved s
UNION ALL
SELECT t.id, t.next_dispatch FROM task_schedule t WHERE t.id = @id::uuid
LIMIT 1;

-- name: TaskScheduleRemove :execrows
-- Deletes the schedule of a name; a trigger deletes the roles on it.
DELETE FROM task_schedule WHERE name = @name::text;

-- name: TaskScheduleDelete :execrows
-- Deletes a schedule by its id; a trigger deletes the roles on it. One that has replaced it meanwhile stays, and those on that.
DELETE FROM task_schedule s WHERE s.id = @id::uuid;

-- name: TaskScheduleList :many
-- All schedules, by name, a page of them.
SELECT s.id, s.name, s.task_name, s.args, s.exclusive, s.shared, s.priority, s.cron, s.next_dispatch, s.last_task, s.created_at,
    coalesce(extract(epoch FROM s.dispatch_interval), 0)::float8 AS interval_seconds
FROM task_schedule s ORDER BY s.name LIMIT @most::int OFFSET @skip::int;

-- name: TaskScheduleDue :many
-- What is due by the database's clock, of these task types, and has no unfinished task. next_by_interval
-- is the first whole interval after now: what was missed is not caught up on.
SELECT s.id, s.name, s.task_name, s.args, s.exclusive, s.shared, s.priority, s.cron, s.next_dispatch,
    now()::timestamptz AS now,
    (s.next_dispatch + s.dispatch_interval * (1 + floor(extract(epoch FROM now() - s.next_dispatch) / extract(epoch FROM s.dispatch_interval))))::timestamptz AS next_by_interval
FROM task_schedule s
WHERE s.next_dispatch <= now() AND s.task_name = ANY (@task_names::text[])
  AND NOT EXISTS (SELECT FROM task t WHERE t.id = s.last_task AND t.finished_at IS NULL)
ORDER BY s.next_dispatch LIMIT @most::int;

-- name: Now :one
-- The database's clock.
SELECT now()::timestamptz;

-- name: TaskScheduleRead :many
-- These schedules.
SELECT s.id, s.name, s.task_name, s.next_dispatch, s.last_task, s.created_at,
    coalesce(extract(epoch FROM s.dispatch_interval), 0)::float8 AS interval_seconds
FROM task_schedule s WHERE s.id = ANY (@ids::uuid[]);
