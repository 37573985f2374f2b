-- name: AppStatusRegister :one
-- Writes the row of a process that starts, and answers how many of its type are online, it included,
-- and how many of them keep house: the last count, a second old at most unless another is counting, and
-- all that have registered since, of any type. A second send of the same id changes nothing but the beat.
SELECT r.online::int AS online, r.housekeepers::int AS housekeepers
FROM app_register(@id::uuid, (@app_type::text)::app_type, @name::text, (@versions::text)::jsonb, @task_names::text[],
    make_interval(secs => @ttl_seconds::float8), @housekeeping::bool) r;

-- name: AppStatusBeat :one
-- Prolongs the lease. Null: the process was declared missing and must stop. Else three numbers: how many of
-- its type are online and how many of them keep house, as counted a second ago at most, unless another is
-- counting, or when this one registered, if that was later; and 1 if tasks of other than these kinds are
-- runnable, and have been for so many seconds (null: it does not look), or are due and have no place yet, else 0.
SELECT app_beat(@id::uuid, make_interval(secs => sqlc.narg(patience)::float8), @foreign_kinds::int[])::int[] AS told;

-- name: AppStatusUnregister :execrows
-- Removes the row of a process that ends. The foreign key frees whatever it still holds.
DELETE FROM app_status WHERE id = @id::uuid;

-- name: AppStatusSweep :many
-- Deletes processes whose lease has ended; the foreign key frees their tasks. Any number may sweep at
-- once: rows that another has locked are skipped.
DELETE FROM app_status WHERE id = ANY (ARRAY(
    SELECT a.id FROM app_status a WHERE a.last_heartbeat + a.ttl < now() LIMIT 100 FOR UPDATE SKIP LOCKED))
RETURNING id, app_type, name, last_heartbeat;

-- name: AppStatusList :many
-- Processes, the latest registered first, with the task each one runs, the newest if several.
-- Online: the lease has not ended.
SELECT a.id, a.app_type::text AS app_type, a.name, a.versions, a.task_names, a.created_at, a.last_heartbeat,
    extract(epoch FROM a.ttl)::float8 AS ttl_seconds,
    (a.last_heartbeat + a.ttl >= now())::bool AS online,
    (SELECT t.id FROM task t WHERE t.app_lock = a.id AND t.state = 'running' ORDER BY t.started_at DESC LIMIT 1)::uuid AS current_task,
    (SELECT count(*) FROM task t WHERE t.app_lock = a.id)::int AS holding
FROM app_status a
WHERE (@app_type::text = '' OR a.app_type = (@app_type::text)::app_type)
ORDER BY a.created_at DESC, a.id LIMIT @most::int OFFSET @skip::int;

-- name: AppStatusCapabilities :many
-- What the workers that are online can run, and how many can.
SELECT a.versions, a.task_names, count(*)::int AS workers FROM app_status a
WHERE a.app_type = 'worker' AND a.last_heartbeat + a.ttl >= now()
GROUP BY a.versions, a.task_names ORDER BY workers DESC;

-- name: AppStatusOnline :many
-- All processes that are online, by name.
SELECT a.app_type::text AS app_type, a.name, a.versions, a.last_heartbeat FROM app_status a
WHERE a.last_heartbeat + a.ttl >= now() ORDER BY a.name, a.id;

-- name: AppStatusRead :many
-- These processes, with the task that each one runs, the newest if several.
SELECT a.id, a.name, a.versions, a.created_at, a.last_heartbeat,
    (SELECT t.id FROM task t WHERE t.app_lock = a.id AND t.state = 'running' ORDER BY t.started_at DESC LIMIT 1)::uuid AS current_task
FROM app_status a WHERE a.id = ANY (@ids::uuid[]) AND a.app_type = (@app_type::text)::app_type;
