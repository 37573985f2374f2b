-- name: TaskDispatch :many
-- Inserts tasks and queues them: see the function, which takes the locks of their resources. A row is the
-- text of a record: see TaskTurn. Tasks that belong to somebody, or may, as children of tasks do, get their roles first.
SELECT task_dispatch(sqlc.narg(dispatcher)::uuid, @run_here, sqlc.narg(parent)::uuid, @parent_attempt, (@busy::text)::json,
    sqlc.narg(schedule)::uuid, sqlc.narg(schedule_due)::timestamptz, sqlc.narg(schedule_next)::timestamptz,
    @kind_names::text[], @kind_versions::text[], @kind_attempts::int[], (@kind_backoffs::text[])::interval[],
    @ids::uuid[], @kinds::int[], @arguments::text[], @cids::text[], @groups::uuid[], @priorities::int[],
    @immediates::bool[], @deferreds::bool[], @not_befores::timestamptz[],
    @reserving::int[], @resources::text[], @exclusives::bool[], @impatient)::text AS placed
FROM (SELECT CASE WHEN sqlc.narg(parent)::uuid IS NOT NULL OR cardinality(@owners::int[]) > 0
    THEN task_own(@ids::uuid[], sqlc.narg(parent)::uuid, @owners::int[]) END) roles;

-- name: TaskTurn :many
-- A worker's one statement: finishes, claims, and tells what else there is; see the function. Locks the
-- queues of what it finishes, skips what is locked when it claims. A row is the text of a record, since
-- PostgreSQL takes longer to read a list of columns, each time, than to run a turn of one task.
SELECT task_turn(@worker::uuid, @known::int[], @runnable::int[], @wanted, @recovering, @holding::uuid[],
    @ids::uuid[], @attempts::int[], @states::text[], @results::text[], @errors::text[], sqlc.narg(sole), @quick,
    @searching, @seen_kinds::int[], @seen_ranks::int[], @seen_heads::timestamptz[], @impatient)::text AS event;

-- name: TaskTurnUsed :many
-- A turn that also records what attempts took that it ends; see TaskTurn.
SELECT task_turn_used(@used_ids::uuid[], @peak_memories::bigint[], @cpu_seconds::float8[],
    @worker::uuid, @known::int[], @runnable::int[], @wanted, @recovering, @holding::uuid[],
    @ids::uuid[], @attempts::int[], @states::text[], @results::text[], @errors::text[], sqlc.narg(sole), @quick,
    @searching, @seen_kinds::int[], @seen_ranks::int[], @seen_heads::timestamptz[], @impatient)::text AS event;

-- name: TaskToken :one
-- The place in its queues of a task that the holder still holds, which is its fencing token. No row: the lock is lost.
SELECT t.seq::bigint AS token FROM task t WHERE t.id = @id::uuid AND t.app_lock = @holder::uuid AND t.attempt = @attempt::int
  AND t.state IN ('running', 'canceling');

-- name: TaskEnqueueDue :one
-- Queues tasks whose time has come; answers how many. Locks the queues that they enter.
SELECT task_enqueue_due(@most::int)::int;

-- name: TaskCancel :many
-- Cancels what waits, asks the holders of what runs; locks the queues, then the tasks.
SELECT r.task_id::uuid AS id, r.task_state::text AS state, r.changed::bool AS changed
FROM task_cancel(@ids::uuid[]) AS r (task_id, task_state, changed);

-- name: TaskAbandonedFinish :many
-- Ends what missing processes left behind; locks as a finish does.
SELECT r.task_id::uuid AS id, r.task_state::text AS state
FROM task_abandoned_finish(@most::int, @error::text) AS r (task_id, task_state);

-- name: TaskStates :many
-- What state these tasks are in, and who holds them. At once: started as it was dispatched, by its dispatcher.
SELECT t.id, t.state::text AS state, t.created_at, t.app_lock,
    coalesce(t.started_at = t.unblocked_at, false)::bool AS at_once
FROM task t WHERE t.id = ANY (@ids::uuid[]);

-- name: TaskRead :many
-- These tasks.
SELECT * FROM task_told t
WHERE t.id = ANY (@ids::uuid[]);

-- name: TaskSizes :many
-- How many bytes the results and errors of these tasks have.
SELECT t.id, (coalesce(octet_length(t.result::text), 0) + coalesce(octet_length(t.error::text), 0))::bigint AS bytes
FROM task t WHERE t.id = ANY (@ids::uuid[]);

-- name: TaskChildren :many
-- The children of these tasks, of each the oldest thousand.
SELECT p.id::uuid AS parent, c.id FROM unnest(@parents::uuid[]) p (id)
CROSS JOIN LATERAL (SELECT t.id FROM task t WHERE t.parent_task = p.id ORDER BY t.id LIMIT 1000) c;

-- name: TaskDelete :one
-- Deletes a task that is final; a trigger deletes the roles on it. The foreign key takes the parent from its children: all
-- are locked in the order of their ids before. No row: there is no such task.
WITH family AS MATERIALIZED (
    SELECT t.id, t.finished_at FROM task t WHERE t.id = @id::uuid OR t.parent_task = @id::uuid ORDER BY t.id FOR NO KEY UPDATE
), gone AS (
    DELETE FROM task t WHERE t.id = @id::uuid AND t.finished_at IS NOT NULL AND (SELECT count(*) FROM family) > 0
    RETURNING t.id
)
SELECT (g.id IS NOT NULL)::bool AS deleted
FROM family f LEFT JOIN gone g ON g.id = f.id WHERE f.id = @id::uuid;

-- name: TaskList :many
-- Newest first, by id: a UUIDv7 begins with its time.
SELECT * FROM task_told t
WHERE (cardinality(@states::text[]) = 0 OR t.state = ANY ((@states::text[])::task_state[]))
  AND (@name::text = '' OR t.name = @name::text)
  AND (@cid::text = '' OR t.logging_cid = @cid::text)
  AND (sqlc.narg(in_group)::uuid IS NULL OR t.task_group = sqlc.narg(in_group)::uuid)
  AND (sqlc.narg(parent)::uuid IS NULL OR t.parent_task = sqlc.narg(parent)::uuid)
  AND (@resource::text = '' OR task_reserved(t.reserved_resources_record) && ARRAY[@resource::text, 'shared:' || @resource::text])
ORDER BY t.id DESC LIMIT @most::int OFFSET @skip::int;

-- name: TaskPurge :one
-- Looks at the next tasks by age, up to most of them, and deletes those that are final, in these states
-- and finished before the time; triggers delete the roles on them. Of a user only those that they own. Answers where to go
-- on: the last id it looked at, null at the end.
WITH page AS (
    SELECT t.id, t.state, t.finished_at FROM task t
    WHERE t.id > @after::uuid ORDER BY t.id LIMIT @most::int
), old AS MATERIALIZED (
    SELECT p.id FROM page p
    WHERE p.finished_at < @finished_before::timestamptz AND p.state = ANY ((@states::text[])::task_state[])
      AND (sqlc.narg(owner)::int IS NULL
          -- Counted, not EXISTS, which makes the planner read the table in the hope of a match, or hash all of the user's roles.
          OR (SELECT count(*) FROM user_role r WHERE r.user_id = sqlc.narg(owner)::int AND r.role = 'core.task_owner' AND r.model = '') > 0
          OR (SELECT count(*) FROM user_role r WHERE r.user_id = sqlc.narg(owner)::int AND r.role = 'core.task_owner'
              AND r.model = 'core.task' AND r.object = p.id::text) > 0)
), family AS MATERIALIZED (
    -- The foreign key takes the parent from the children: lock all in the order of their ids before.
    SELECT t.id FROM task t
    WHERE t.id = ANY (ARRAY(SELECT o.id FROM old o)) OR t.parent_task = ANY (ARRAY(SELECT o.id FROM old o))
    ORDER BY t.id FOR NO KEY UPDATE
), gone AS (
    DELETE FROM task t WHERE t.id = ANY (ARRAY(SELECT o.id FROM old o)) AND (SELECT count(*) FROM family) > 0
    RETURNING t.id
)
SELECT (SELECT count(*) FROM gone)::int AS deleted, (SELECT p.id FROM page p ORDER BY p.id DESC LIMIT 1)::uuid AS last,
    (SELECT count(*) FROM progress_report r WHERE r.task_id IN (SELECT g.id FROM gone g))::int AS reports,
    (SELECT count(*) FROM created_resource r WHERE r.task_id IN (SELECT g.id FROM gone g))::int AS created,
    (SELECT count(*) FROM user_role r WHERE r.model = 'core.task' AND r.object = ANY (ARRAY(SELECT g.id::text FROM gone g)))::int AS roles;

-- name: TaskQueuePlaces :many
-- For explaining: where a task stands in each queue, and who stands first there.
SELECT r.resource, r.exclusive, r.granted,
    (SELECT count(*) FROM task_reservation a WHERE a.resource = r.resource AND a.seq < r.seq)::int AS ahead,
    h.task AS holder, h.exclusive AS holder_exclusive, hk.name AS holder_name, ht.state::text AS holder_state,
    ht.started_at AS holder_started_at, ht.app_lock AS worker, coalesce(w.name, '')::text AS worker_name
FROM task me
JOIN task_reservation r ON r.seq = me.seq AND r.task = me.id
    AND r.resource = ANY (SELECT CASE WHEN starts_with(x, 'shared:') THEN substr(x, 8) ELSE x END FROM unnest(task_reserved(me.reserved_resources_record)) x)
JOIN LATERAL (SELECT f.* FROM task_reservation f WHERE f.resource = r.resource ORDER BY f.seq LIMIT 1) h ON true
JOIN task ht ON ht.id = h.task
JOIN task_kind hk ON hk.id = ht.kind
LEFT JOIN app_status w ON w.id = ht.app_lock
WHERE me.id = @id::uuid
ORDER BY r.granted, r.resource;

-- name: TaskReadyAhead :one
-- For explaining: how many runnable tasks are claimed before this one by a worker that runs all kinds.
SELECT count(*)::int FROM task me JOIN task o ON o.state = 'waiting' AND o.blocked_on = 0
    AND (o.rank, o.unblocked_at) < (me.rank, me.unblocked_at)
WHERE me.id = @id::uuid;

-- name: TaskUnblocked :one
-- For metrics: how many runnable tasks nobody has claimed for some seconds or more, and how long the first of all has been
-- waiting, in seconds. It reads the index of what can be claimed, whole.
SELECT count(*) FILTER (WHERE t.unblocked_at <= now() - make_interval(secs => @seconds::float8)) AS tasks,
    coalesce(extract(epoch FROM now() - min(t.unblocked_at)), 0)::float8 AS longest_seconds
FROM task t WHERE t.state = 'waiting' AND t.blocked_on = 0;

-- name: TaskCount :one
-- How many tasks there are.
SELECT count(*) FROM task;

-- name: TaskCompletedCount :one
-- How many tasks are completed: those that are in no other state. It reads the rows of no completed task.
SELECT ((SELECT count(*) FROM task) - (SELECT count(DISTINCT s.id) FROM api_task_state s))::bigint;
