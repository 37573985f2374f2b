-- +goose Up

-- The steps of a task's life that take locks first and decide afterwards. A statement's snapshot is
-- taken when it starts, so the reads that decide must come in a statement after the one that took
-- the locks. A PL/pgSQL function gives each of its statements a snapshot of its own, is one
-- statement on the wire (a pooler in transaction or statement mode can put it anywhere), and is
-- planned once per server connection.
--
-- Locks are taken in one order everywhere: resource_lock by bucket ascending, then app_status, then
-- rows of task by id ascending. A claim only skips what is locked. Deleting an app visits its tasks in
-- any order, so who is going to lock tasks takes the key of their holder's row before, which keeps it
-- from being deleted meanwhile.
--
-- The functions that clients call pin the shape of the plans of all that they call. A plan that is
-- cached while a table is small, or that trusts the statistics of a table that has just filled,
-- would read whole queues. For the same reason rows are named by arrays (id = ANY), and what belongs
-- to a row is found in a parallel array by width_bucket, a binary search: there is no join to plan
-- wrongly, and rows are visited in the order of their ids. Such arrays of ids come sorted. And a look at
-- one row is a subquery with a scalar result, since EXISTS becomes a join, too. (SET in a function's head is undone when it returns; nothing of it is
-- left on the server connection.)

-- Buckets and modes ------------------------------------------------------------------------------

-- +goose StatementBegin
CREATE FUNCTION resource_bucket(resource text) RETURNS int LANGUAGE sql IMMUTABLE AS $$
    SELECT (hashtextextended(resource, 0) & 4095)::int
$$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION resource_is_domain(resource text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT starts_with(resource, 'prn:core.domain:')
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION resource_is_domain IS
    'Every task shares its domain. Such a share takes one stripe and has no row in the queue while no exclusive reservation of the domain is queued.';

-- +goose StatementBegin
CREATE FUNCTION resource_contended(queue text) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
    -- Granted rows stand first and an exclusive grant stands alone, so the last row tells.
    RETURN coalesce((SELECT r.exclusive OR NOT r.granted FROM task_reservation r
                     WHERE r.resource = queue ORDER BY r.seq DESC LIMIT 1), false);
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION resource_contended IS 'Whether an exclusive reservation is queued, granted or not.';

-- +goose StatementBegin
CREATE FUNCTION resource_lock_buckets(shared int[], exclusive int[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    b record;
BEGIN
    IF cardinality(exclusive) = 0 THEN
        PERFORM 1 FROM resource_lock l WHERE l.bucket = ANY (shared) ORDER BY l.bucket FOR SHARE;
        RETURN;
    END IF;
    -- A held share is never upgraded: two such would deadlock. So the stronger mode comes first.
    FOR b IN SELECT u.bucket, bool_or(u.strong) AS strong
             FROM (SELECT unnest(shared) AS bucket, false AS strong
                   UNION ALL SELECT unnest(exclusive), true) u
             GROUP BY u.bucket ORDER BY u.bucket
    LOOP
        IF b.strong THEN
            PERFORM 1 FROM resource_lock l WHERE l.bucket = b.bucket FOR UPDATE;
        ELSE
            PERFORM 1 FROM resource_lock l WHERE l.bucket = b.bucket FOR SHARE;
        END IF;
    END LOOP;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION resource_lock_buckets IS 'Locks buckets in ascending order until the transaction ends.';

-- +goose StatementBegin
CREATE FUNCTION resource_lock_all(shared text[], exclusive text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    weak   int[];
    strong int[];
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'tasks are moved in READ COMMITTED transactions only, this one is %', upper(current_setting('transaction_isolation'))
            USING ERRCODE = 'invalid_transaction_state',
            DETAIL = 'A snapshot that is older than the locks would let tasks run together that exclude each other.';
    END IF;
    -- The backend's pid spreads the shares of a domain over its stripes.
    SELECT coalesce(array_agg(DISTINCT CASE WHEN resource_is_domain(r) THEN -1 - pg_backend_pid() % 64
                                            ELSE resource_bucket(r) END), '{}')
        INTO weak FROM unnest(shared) r;
    SELECT coalesce(array_agg(resource_bucket(r)), '{}')
        INTO strong FROM unnest(exclusive) r WHERE NOT resource_is_domain(r);
    IF EXISTS (SELECT FROM unnest(exclusive) r WHERE resource_is_domain(r)) THEN
        strong := strong || ARRAY(SELECT generate_series(-64, -1));
    END IF;
    PERFORM resource_lock_buckets(weak, strong);
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION resource_lock_all IS
    'Locks the queues of these resources: shared ones against exclusive ones, exclusive ones against all.';

-- Entering the queues ----------------------------------------------------------------------------

-- +goose StatementBegin
CREATE FUNCTION domain_shares_write(domain text) RETURNS void LANGUAGE sql AS $$
    -- Four indexes name every task that is queued and unfinished: runnable, held, abandoned, blocked.
    INSERT INTO task_reservation (resource, seq, task, exclusive, granted)
    SELECT domain, t.seq, t.id, false, true
    FROM (SELECT id, seq, reserved_resources_record FROM task WHERE state = 'waiting' AND blocked_on = 0
          UNION ALL
          SELECT id, seq, reserved_resources_record FROM task WHERE app_lock IS NOT NULL
          UNION ALL
          SELECT id, seq, reserved_resources_record FROM task
          WHERE app_lock IS NULL AND state IN ('running', 'canceling')
          UNION ALL
          SELECT id, seq, reserved_resources_record FROM task
          WHERE id IN (SELECT r.task FROM task_reservation r WHERE NOT r.granted)) t
    WHERE 'shared:' || domain = ANY (t.reserved_resources_record)
    ON CONFLICT DO NOTHING
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION domain_shares_write IS
    'Writes the shares of a domain that have no row, because an exclusive reservation is about to queue behind them. Costs O(unfinished tasks), once per such reservation, under all the stripes.';

-- +goose StatementBegin
CREATE FUNCTION reservation_place(tasks int[], resources text[], exclusives boolean[])
RETURNS TABLE (task int, resource text, exclusive boolean, granted boolean) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    PERFORM domain_shares_write(d.name)
    FROM (SELECT DISTINCT u.name FROM unnest(resources, exclusives) u (name, exclusive)
          WHERE u.exclusive AND resource_is_domain(u.name)) d;
    RETURN QUERY
    WITH new AS MATERIALIZED (
        SELECT * FROM unnest(tasks, resources, exclusives) AS n (task, resource, exclusive)
    ), queue AS MATERIALIZED (
        -- What is there already: nothing, only shared ones, or an exclusive one among them.
        SELECT d.resource, tail.contended, d.resource_wanted
        FROM (SELECT n.resource, bool_or(n.exclusive) AS resource_wanted FROM new n GROUP BY n.resource) d
        LEFT JOIN LATERAL (SELECT r.exclusive OR NOT r.granted AS contended FROM task_reservation r
                           WHERE r.resource = d.resource ORDER BY r.seq DESC LIMIT 1) tail ON true
    )
    SELECT n.task, n.resource, n.exclusive,
           CASE WHEN n.exclusive
                THEN q.contended IS NULL AND row_number() OVER place = 1
                ELSE NOT coalesce(q.contended, false) AND NOT coalesce(bool_or(n.exclusive) OVER before, false)
           END
    FROM new n JOIN queue q ON q.resource = n.resource
    WHERE NOT resource_is_domain(n.resource) OR q.resource_wanted OR q.contended
    WINDOW place AS (PARTITION BY n.resource ORDER BY n.task),
           before AS (place ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING);
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION reservation_place IS
    'Decides for new reservations, in the order of their tasks, which are granted at once: an exclusive one if its queue is empty, a shared one if no exclusive one is queued. Shares of a domain that need no row are left out. To be asked under the locks.';

-- +goose StatementBegin
CREATE FUNCTION task_kinds(names text[], needed text[], attempts int[], backoffs interval[])
RETURNS int[] LANGUAGE plpgsql AS $$
DECLARE
    ids  int[] := '{}';
    kind int;
    i    int;
BEGIN
    -- In one order whatever the caller's: who writes a new kind makes others that write it wait.
    FOR i IN SELECT u.o FROM unnest(names, needed, attempts, backoffs) WITH ORDINALITY u (name, needed, attempts, backoff, o)
             ORDER BY u.name, u.needed, u.attempts, u.backoff
    LOOP
        LOOP
            SELECT k.id INTO kind FROM task_kind k
            WHERE k.name = names[i] AND k.versions = needed[i]::jsonb
              AND k.max_attempts = attempts[i] AND k.backoff = backoffs[i];
            EXIT WHEN FOUND;
            INSERT INTO task_kind (name, versions, max_attempts, backoff)
            VALUES (names[i], needed[i]::jsonb, attempts[i], backoffs[i])
            ON CONFLICT DO NOTHING RETURNING id INTO kind;
            EXIT WHEN FOUND;
        END LOOP;
        ids[i] := kind;
    END LOOP;
    RETURN ids;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION task_kinds IS 'The ids of these kinds; one seen for the first time is written.';

-- +goose StatementBegin
CREATE FUNCTION task_dispatch(
    domain text, dispatcher uuid, run_here boolean, parent uuid, parent_attempt int, busy json,
    schedule uuid, schedule_due timestamptz, schedule_next timestamptz,
    kind_names text[], kind_versions text[], kind_attempts int[], kind_backoffs interval[],
    ids uuid[], kinds int[], arguments text[], cids text[], groups uuid[], priorities int[],
    immediates boolean[], deferreds boolean[], not_befores timestamptz[],
    reserving int[], resources text[], exclusives boolean[])
RETURNS TABLE (task_id uuid, task_state task_state, task_created_at timestamptz) LANGUAGE plpgsql
SET jit = off SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_mergejoin = off SET enable_nestloop = off AS $$
#variable_conflict use_column
DECLARE
    kind_ids int[] := task_kinds(kind_names, kind_versions, kind_attempts, kind_backoffs);
    due      boolean[];
    entries  int[] := '{}';
    names    text[] := '{}';
    modes    boolean[] := '{}';
BEGIN
    SELECT array_agg(u.t IS NULL OR u.t <= clock_timestamp() ORDER BY u.o) INTO due
    FROM unnest(not_befores) WITH ORDINALITY u (t, o);

    -- Joining a queue in share needs only to keep out those who change it for an exclusive one.
    PERFORM resource_lock_all(
        ARRAY(SELECT DISTINCT u.r FROM unnest(reserving, resources, exclusives) u (t, r, x) WHERE NOT u.x AND due[u.t]) || domain,
        ARRAY(SELECT DISTINCT u.r FROM unnest(reserving, resources, exclusives) u (t, r, x) WHERE u.x AND due[u.t]));

    IF parent IS NOT NULL THEN
        -- Against the sweep: once fenced, a worker adds no children.
        PERFORM 1 FROM app_status a WHERE a.id = dispatcher FOR KEY SHARE;
        PERFORM 1 FROM task t
        WHERE t.id = parent AND t.app_lock = dispatcher AND t.attempt = parent_attempt
          AND t.state IN ('running', 'canceling') FOR SHARE;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'attempt % of task % is not held by app %', parent_attempt, parent, dispatcher USING ERRCODE = 'PT001';
        END IF;
    END IF;

    IF cardinality(resources) > 0 OR resource_contended(domain) THEN
        SELECT coalesce(array_agg(e.t), '{}'), coalesce(array_agg(e.r), '{}'), coalesce(array_agg(e.x), '{}')
        INTO entries, names, modes
        FROM (SELECT u.t, u.r, u.x FROM unnest(reserving, resources, exclusives) u (t, r, x) WHERE due[u.t]
              UNION ALL
              SELECT u.o, domain, false FROM unnest(due) WITH ORDINALITY u (due, o)
              WHERE u.due AND NOT EXISTS
                  (SELECT FROM unnest(reserving, resources) own (t, r) WHERE own.t = u.o AND own.r = domain)) e;
    END IF;

    RETURN QUERY
    WITH entry AS MATERIALIZED (
        SELECT * FROM reservation_place(entries, names, modes)
    ), blocked AS MATERIALIZED (
        SELECT e.task, count(*) FILTER (WHERE NOT e.granted) AS on_n FROM entry e GROUP BY e.task
    ), record AS MATERIALIZED (
        SELECT u.t, array_agg(CASE WHEN u.x THEN u.r ELSE 'shared:' || u.r END ORDER BY NOT u.x, u.o) AS reserved,
               bool_or(u.x AND u.r = domain) AS owns_domain
        FROM unnest(reserving, resources, exclusives) WITH ORDINALITY u (t, r, x, o) GROUP BY u.t
    ), new AS (
        INSERT INTO task AS t (id, kind, args, logging_cid, task_group, priority, immediate, deferred, not_before,
            parent_task, reserved_resources_record, state, app_lock, attempt,
            blocked_on, unblocked_at, started_at, finished_at, error)
        SELECT n.id, kind_ids[n.kind], n.args::json, n.cid, n.in_group, n.priority, n.immediate, n.deferred, n.not_before,
            parent, CASE WHEN r.owns_domain THEN r.reserved ELSE r.reserved || ('shared:' || domain) END,
            s.state, CASE s.state WHEN 'running' THEN dispatcher END, (s.state = 'running')::int,
            n.blocked_on, CASE n.blocked_on WHEN 0 THEN n.at END,
            CASE s.state WHEN 'running' THEN n.at END,
            CASE s.state WHEN 'canceled' THEN n.at END,
            CASE s.state WHEN 'canceled' THEN busy END
        FROM (SELECT u.*, CASE WHEN u.due THEN coalesce(b.on_n, 0) END AS blocked_on, clock_timestamp() AS at
              FROM unnest(ids, kinds, arguments, cids, groups, priorities, immediates, deferreds, not_befores, due)
                  WITH ORDINALITY u (id, kind, args, cid, in_group, priority, immediate, deferred, not_before, due, o)
              LEFT JOIN blocked b ON b.task = u.o) n
        LEFT JOIN record r ON r.t = n.o
        CROSS JOIN LATERAL (SELECT CASE
            WHEN n.immediate AND n.blocked_on = 0 AND run_here THEN 'running'
            WHEN NOT n.deferred AND n.blocked_on > 0 THEN 'canceled'
            ELSE 'waiting' END::task_state AS state) s
        ORDER BY n.o
        RETURNING t.id, t.seq, t.state, t.created_at
    ), placed AS (
        INSERT INTO task_reservation (resource, seq, task, exclusive, granted)
        SELECT e.resource, new.seq, new.id, e.exclusive, e.granted
        FROM entry e JOIN new ON new.id = ids[e.task]
        WHERE new.state <> 'canceled'
    )
    SELECT new.id, new.state, new.created_at FROM new;

    IF schedule IS NOT NULL THEN
        UPDATE task_schedule s SET next_dispatch = schedule_next, last_task = ids[1]
        WHERE s.id = schedule AND s.next_dispatch = schedule_due
          AND (SELECT t.finished_at IS NULL FROM task t WHERE t.id = s.last_task) IS NOT TRUE;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'schedule % is not due at %', schedule, schedule_due USING ERRCODE = 'PT002';
        END IF;
    END IF;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION task_dispatch IS
    'Inserts tasks, all or none. A due one enters the queues of its resources; an immediate one that nothing blocks is held by the dispatcher at once, if it wants to run it here; one that may not be deferred and is blocked is canceled at once. Sent twice it fails on the primary key. PT001: the parent is not held by the dispatcher (any more). PT002: somebody else dispatched this schedule.';

-- +goose StatementBegin
CREATE FUNCTION task_reserves(ids uuid[]) RETURNS TABLE (task int, name text, exclusive boolean, seq bigint)
LANGUAGE sql STABLE AS $$
    SELECT u.o::int, CASE WHEN starts_with(r, 'shared:') THEN substr(r, 8) ELSE r END,
           NOT starts_with(r, 'shared:'), t.seq
    FROM unnest(ids) WITH ORDINALITY u (id, o)
    CROSS JOIN LATERAL (SELECT k.seq, k.reserved_resources_record FROM task k WHERE k.id = u.id LIMIT 1) t
    CROSS JOIN LATERAL unnest(t.reserved_resources_record) r
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION task_reserves IS 'What these tasks reserve, one row per task and resource; task counts from 1.';

-- +goose StatementBegin
CREATE FUNCTION task_enqueue_due(most int) RETURNS int LANGUAGE plpgsql
SET jit = off SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_mergejoin = off SET enable_hashjoin = off AS $$
DECLARE
    ids   uuid[];
    moved int;
BEGIN
    SELECT array_agg(d.id ORDER BY d.not_before, d.id) INTO ids
    FROM (SELECT t.id, t.not_before FROM task t
          WHERE t.state = 'waiting' AND t.blocked_on IS NULL AND t.not_before <= clock_timestamp()
          ORDER BY t.not_before LIMIT most) d;
    IF ids IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM resource_lock_all(
        ARRAY(SELECT DISTINCT r.name FROM task_reserves(ids) r WHERE NOT r.exclusive),
        ARRAY(SELECT DISTINCT r.name FROM task_reserves(ids) r WHERE r.exclusive));
    -- Whom another has locked, that one is moving.
    SELECT array_agg(l.id ORDER BY l.not_before, l.id) INTO ids
    FROM (SELECT t.id, t.not_before FROM task t
          WHERE t.id = ANY (ids) AND t.state = 'waiting' AND t.blocked_on IS NULL
          ORDER BY t.id FOR NO KEY UPDATE SKIP LOCKED) l;
    IF ids IS NULL THEN
        RETURN 0;
    END IF;
    -- seq first, in the order of their due times: it is their place.
    UPDATE task t SET seq = DEFAULT FROM unnest(ids) WITH ORDINALITY u (id, o) WHERE t.id = u.id;
    WITH entry AS MATERIALIZED (
        SELECT * FROM reservation_place(
            ARRAY(SELECT r.task FROM task_reserves(ids) r ORDER BY r.task, r.name),
            ARRAY(SELECT r.name FROM task_reserves(ids) r ORDER BY r.task, r.name),
            ARRAY(SELECT r.exclusive FROM task_reserves(ids) r ORDER BY r.task, r.name))
    ), placed AS (
        INSERT INTO task_reservation (resource, seq, task, exclusive, granted)
        SELECT e.resource, t.seq, t.id, e.exclusive, e.granted FROM entry e JOIN task t ON t.id = ids[e.task]
    ), queued AS (
        UPDATE task t SET blocked_on = b.on_n, unblocked_at = CASE b.on_n WHEN 0 THEN clock_timestamp() END
        FROM (SELECT u.id, count(e.task) FILTER (WHERE NOT e.granted) AS on_n
              FROM unnest(ids) WITH ORDINALITY u (id, o) LEFT JOIN entry e ON e.task = u.o GROUP BY u.id) b
        WHERE t.id = b.id
        RETURNING 1
    )
    SELECT count(*) INTO moved FROM queued;
    RETURN moved;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION task_enqueue_due IS
    'Gives tasks whose not_before has come their place in the queues. Any number may call it at once.';

-- Leaving the queues -----------------------------------------------------------------------------

-- +goose StatementBegin
CREATE FUNCTION task_queues_lock(ids uuid[]) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    weak   text[];
    strong text[];
    queues text[];
BEGIN
    -- Leaving a queue in share matters to nobody unless an exclusive reservation is queued there.
    SELECT coalesce(array_agg(n.name) FILTER (WHERE NOT n.exclusive AND NOT n.contended), '{}'),
           coalesce(array_agg(n.name) FILTER (WHERE n.exclusive OR n.contended), '{}')
    INTO weak, strong
    FROM (SELECT r.name, bool_or(r.exclusive) AS exclusive, resource_contended(r.name) AS contended
          FROM task_reserves(ids) r GROUP BY r.name) n;
    PERFORM resource_lock_all(weak, strong);
    IF EXISTS (SELECT FROM unnest(weak) w WHERE resource_contended(w)) THEN
        RAISE EXCEPTION 'an exclusive reservation came in between' USING ERRCODE = 'serialization_failure';
    END IF;
    SELECT coalesce(array_agg(q), '{}') INTO queues FROM unnest(weak || strong) q
    WHERE (SELECT true FROM task_reservation r WHERE r.resource = q LIMIT 1);
    RETURN queues;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION task_queues_lock IS
    'Locks the queues that these tasks may leave, and returns those that are not empty. Looks, locks, looks again; serialization_failure means that the caller should send its statement again.';

-- +goose StatementBegin
CREATE FUNCTION task_queues_leave(ids uuid[], queues text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    freed   text[];
    granted uuid[];
    counts  int[];
BEGIN
    IF cardinality(queues) = 0 OR cardinality(ids) = 0 THEN
        RETURN;
    END IF;
    -- By ctid, found one by one: under the locks nobody else changes these rows.
    WITH gone AS (
        DELETE FROM task_reservation r WHERE r.ctid = ANY (ARRAY(
            SELECT own.ctid FROM task_reserves(ids) l
            CROSS JOIN LATERAL (SELECT o.ctid FROM task_reservation o
                                WHERE o.resource = l.name AND o.seq = l.seq LIMIT 1) own
            WHERE l.name = ANY (queues)))
        RETURNING r.resource
    )
    SELECT array_agg(DISTINCT g.resource) INTO freed FROM gone g;
    -- The longest compatible prefix of each queue: its first pending reservation, if nothing that
    -- excludes it stands before it, and behind a shared one the further shared ones up to the first
    -- exclusive one. Read from the pending one, never through the granted ones: depth does not matter.
    WITH compatible AS (
        SELECT f.resource, p.seq AS first,
               CASE WHEN p.exclusive THEN p.seq
                    ELSE coalesce((SELECT r.seq - 1 FROM task_reservation r
                                   WHERE r.resource = f.resource AND NOT r.granted AND r.exclusive
                                   ORDER BY r.seq LIMIT 1), 9223372036854775807) END AS last
        FROM unnest(freed) f (resource)
        CROSS JOIN LATERAL (SELECT r.seq, r.exclusive FROM task_reservation r
                            WHERE r.resource = f.resource AND NOT r.granted ORDER BY r.seq LIMIT 1) p
        CROSS JOIN LATERAL (SELECT r.seq, r.exclusive FROM task_reservation r
                            WHERE r.resource = f.resource ORDER BY r.seq LIMIT 1) head
        WHERE p.seq = head.seq OR NOT (p.exclusive OR head.exclusive)
    ), grants AS (
        UPDATE task_reservation r SET granted = true WHERE r.ctid = ANY (ARRAY(
            SELECT n.ctid FROM compatible c
            CROSS JOIN LATERAL (SELECT o.ctid FROM task_reservation o
                                WHERE o.resource = c.resource AND NOT o.granted AND o.seq BETWEEN c.first AND c.last
                                OFFSET 0) n))
        RETURNING r.task
    )
    SELECT array_agg(g.task ORDER BY g.task), array_agg(g.n ORDER BY g.task) INTO granted, counts
    FROM (SELECT task, count(*)::int AS n FROM grants GROUP BY task) g;
    -- Another release may free the same task at the same time: the row lock makes the second see
    -- the first's count.
    UPDATE task t SET blocked_on = t.blocked_on - counts[width_bucket(t.id, granted)],
        unblocked_at = CASE t.blocked_on WHEN counts[width_bucket(t.id, granted)] THEN clock_timestamp() END
    WHERE t.id = ANY (granted);
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION task_queues_leave IS
    'Takes the reservations of these tasks out of the queues and grants what that frees. Under the locks of task_queues_lock, whose answer is queues.';

-- +goose StatementBegin
CREATE FUNCTION task_finish(holder uuid, ids uuid[], attempts int[], states task_state[], results text[], errors text[])
RETURNS TABLE (task_id uuid, task_state task_state, task_attempt int, recorded boolean) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    queues text[] := task_queues_lock(ids);
    ended  uuid[];
    asked  task_state[];
    ends   task_state[];
    turns  int[];
BEGIN
    PERFORM 1 FROM app_status a WHERE a.id = holder FOR KEY SHARE;
    WITH done AS (
        UPDATE task t SET (state, app_lock, finished_at, result, error, not_before, blocked_on, unblocked_at) = (
            SELECT CASE WHEN e.again THEN 'waiting' WHEN t.state = 'canceling' THEN 'canceled' ELSE states[e.i] END::task_state,
                NULL::uuid,
                CASE WHEN NOT e.again THEN clock_timestamp() END,
                CASE WHEN t.state = 'running' AND states[e.i] = 'completed' THEN nullif(results[e.i], '')::json END,
                CASE WHEN t.state = 'running' THEN nullif(errors[e.i], '')::json END,
                CASE WHEN e.again THEN clock_timestamp() + e.pause ELSE t.not_before END,
                CASE WHEN NOT e.again THEN t.blocked_on END,
                CASE WHEN NOT e.again THEN t.unblocked_at END
            FROM (SELECT n.i, n.pause, t.state = 'running' AND n.pause IS NOT NULL AS again
                  FROM (SELECT m.i, CASE WHEN states[m.i] = 'failed' THEN (
                            -- The exponent's bound keeps the product within what an interval can hold.
                            SELECT least(least(k.backoff, interval '1 hour') * power(2, least(t.attempt - 1, 20)), interval '1 hour')
                            FROM task_kind k WHERE k.id = t.kind AND t.attempt < k.max_attempts) END AS pause
                        FROM (SELECT width_bucket(t.id, ids) AS i) m) n) e)
        WHERE t.id = ANY (ids) AND t.app_lock IS NOT DISTINCT FROM holder
          AND t.attempt = attempts[width_bucket(t.id, ids)] AND t.state IN ('running', 'canceling')
        RETURNING t.id, t.attempt, t.state, states[width_bucket(t.id, ids)] AS asked
    )
    SELECT coalesce(array_agg(d.id ORDER BY d.id), '{}'), array_agg(d.asked ORDER BY d.id),
        array_agg(d.state ORDER BY d.id), array_agg(d.attempt ORDER BY d.id)
    INTO ended, asked, ends, turns FROM done d;

    PERFORM task_queues_leave(ended, queues);
    UPDATE progress_report p SET state = CASE ends[width_bucket(p.task_id, ended)]
            WHEN 'waiting' THEN 'failed' ELSE ends[width_bucket(p.task_id, ended)] END
    WHERE p.task_id = ANY (ended) AND p.state = 'running';

    IF ends IS DISTINCT FROM asked THEN
        RETURN QUERY
        SELECT e.id, e.state, e.turn, true FROM unnest(ended, asked, ends, turns) e (id, asked, state, turn)
        WHERE e.state <> e.asked;
    END IF;
    IF cardinality(ended) < cardinality(ids) THEN
        RETURN QUERY
        SELECT f.id, t.state, t.attempt,
            coalesce(t.attempt = f.attempt AND t.app_lock IS NULL
                AND (t.state = 'canceled' OR t.error::text IS NOT DISTINCT FROM nullif(f.error, ''))
                AND (t.state IN (f.state, 'canceled') OR (t.state = 'waiting' AND f.state = 'failed')), false)
        FROM unnest(ids, attempts, states, errors) f (id, attempt, state, error)
        LEFT JOIN LATERAL (SELECT k.* FROM task k WHERE k.id = f.id LIMIT 1) t ON true
        WHERE f.id <> ALL (ended);
    END IF;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION task_finish IS
    'Ends the attempts of tasks that holder holds (null: that nobody holds any more): into the state asked for, or canceled if a cancel came first, or waiting again if the kind allows another attempt. Returns those that did not end as asked; recorded is false where nothing was written, because the lock is lost. Sent twice, the second is recorded, too.';

-- +goose StatementBegin
CREATE FUNCTION task_cancel(ids uuid[]) RETURNS TABLE (task_id uuid, task_state task_state, changed boolean)
LANGUAGE plpgsql
SET jit = off SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_mergejoin = off SET enable_hashjoin = off AS $$
#variable_conflict use_column
DECLARE
    queues text[] := task_queues_lock(ids);
    ended  uuid[];
    asked  uuid[];
BEGIN
    PERFORM 1 FROM app_status a
    WHERE a.id = ANY (ARRAY(SELECT t.app_lock FROM task t WHERE t.id = ANY (ids) AND t.app_lock IS NOT NULL))
    ORDER BY a.id FOR KEY SHARE;
    PERFORM 1 FROM task t WHERE t.id = ANY (ids) ORDER BY t.id FOR NO KEY UPDATE;
    -- A task that was not due may have entered a queue in share while its row was waited for.
    queues := queues || ARRAY(SELECT DISTINCT r.name FROM task_reserves(ids) r
        WHERE r.name <> ALL (queues) AND (SELECT true FROM task_reservation x WHERE x.resource = r.name LIMIT 1));
    WITH done AS (
        UPDATE task t SET state = 'canceled', finished_at = clock_timestamp(), error = NULL
        WHERE t.id = ANY (ids) AND t.state = 'waiting' AND t.app_lock IS NULL
        RETURNING t.id
    )
    SELECT coalesce(array_agg(d.id), '{}') INTO ended FROM done d;
    WITH told AS (
        UPDATE task t SET state = 'canceling' WHERE t.id = ANY (ids) AND t.state = 'running' RETURNING t.id
    )
    SELECT coalesce(array_agg(d.id), '{}') INTO asked FROM told d;
    PERFORM task_queues_leave(ended, queues);
    RETURN QUERY SELECT t.id, t.state, t.id = ANY (ended || asked) FROM task t WHERE t.id = ANY (ids) ORDER BY t.id;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION task_cancel IS
    'Cancels what waits at once; asks the holder of what runs (canceling); leaves the rest as it is. Returns the tasks that exist, as they are now.';

-- +goose StatementBegin
CREATE FUNCTION task_abandoned_finish(most int, error text)
RETURNS TABLE (task_id uuid, task_state task_state) LANGUAGE plpgsql
SET jit = off SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_mergejoin = off SET enable_hashjoin = off AS $$
#variable_conflict use_column
DECLARE
    ids      uuid[];
    attempts int[];
BEGIN
    SELECT array_agg(a.id ORDER BY a.id), array_agg(a.attempt ORDER BY a.id) INTO ids, attempts
    FROM (SELECT t.id, t.attempt FROM task t
          WHERE t.app_lock IS NULL AND t.state IN ('running', 'canceling') ORDER BY t.id LIMIT most) a;
    IF ids IS NULL THEN
        RETURN;
    END IF;
    PERFORM task_finish(NULL, ids, attempts, array_fill('failed'::task_state, ARRAY[cardinality(ids)]),
        array_fill(''::text, ARRAY[cardinality(ids)]), array_fill(error, ARRAY[cardinality(ids)]));
    RETURN QUERY SELECT t.id, t.state FROM task t WHERE t.id = ANY (ids) AND t.state NOT IN ('running', 'canceling');
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION task_abandoned_finish IS
    'Ends what apps that went missing left behind: running tasks fail with this error (or wait again, where their kind allows another attempt), canceling ones are canceled.';

-- Working ----------------------------------------------------------------------------------------

-- +goose StatementBegin
CREATE FUNCTION task_turn(
    worker uuid, known int[], runnable int[], wanted int, recovering boolean, holding uuid[],
    ids uuid[], attempts int[], states task_state[], results text[], errors text[])
RETURNS TABLE (event text, task_id uuid, task_kind int, task_state task_state, task_attempt int, recorded boolean,
    arguments text, cid text, in_group uuid, parent uuid, immediate boolean, reserved text[],
    created timestamptz, due_in double precision) LANGUAGE plpgsql
SET jit = off SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_mergejoin = off SET enable_hashjoin = off AS $$
#variable_conflict use_column
DECLARE
    next    record;
    claimed int;
    kinds   int[] := '{}';
    ranks   int[] := '{}';
    heads   bigint[] := '{}';
    strange int[] := '{}';
BEGIN
    IF cardinality(ids) > 0 THEN
        RETURN QUERY
        SELECT 'finish', f.task_id, NULL::int, f.task_state, f.task_attempt, f.recorded,
            NULL::text, NULL::text, NULL::uuid, NULL::uuid, NULL::boolean, NULL::text[], NULL::timestamptz, NULL::float8
        FROM task_finish(worker, ids, attempts, states, results, errors) f;
    END IF;

    IF recovering THEN
        RETURN QUERY
        SELECT 'claim', t.id, t.kind, t.state, t.attempt, NULL::boolean,
            t.args::text, t.logging_cid, t.task_group, t.parent_task, t.immediate, t.reserved_resources_record,
            t.created_at, NULL::float8
        FROM task t WHERE t.app_lock = worker AND t.id <> ALL (holding)
          -- What was started as it was dispatched runs inside the dispatcher's call, not in a slot.
          AND t.started_at <> t.unblocked_at;
        GET DIAGNOSTICS claimed = ROW_COUNT;
        wanted := wanted - claimed;
    END IF;

    IF wanted > 0 THEN
        -- One look per kind and rank that is there, whatever stands behind each head; a kind that this
        -- worker cannot run costs it one look, however many tasks of it there are.
        SELECT t.kind, t.rank, t.seq INTO next FROM task t
        WHERE t.state = 'waiting' AND t.blocked_on = 0 ORDER BY t.kind, t.rank, t.seq LIMIT 1;
        WHILE FOUND LOOP
            IF next.kind = ANY (runnable) THEN
                kinds := kinds || next.kind;
                ranks := ranks || next.rank;
                heads := heads || next.seq;
            ELSE
                IF next.kind <> ALL (known) THEN
                    strange := strange || next.kind;
                END IF;
                next.rank := 2147483647; -- on to the next kind, whatever ranks this one has
            END IF;
            SELECT t.kind, t.rank, t.seq INTO next FROM task t
            WHERE t.state = 'waiting' AND t.blocked_on = 0 AND (t.kind, t.rank) > (next.kind, next.rank)
            ORDER BY t.kind, t.rank, t.seq LIMIT 1;
        END LOOP;

        FOR next IN SELECT u.kind, u.rank FROM unnest(kinds, ranks, heads) u (kind, rank, head) ORDER BY u.rank, u.head LOOP
            EXIT WHEN wanted <= 0;
            RETURN QUERY
            UPDATE task t SET app_lock = worker, state = 'running', attempt = t.attempt + 1, started_at = clock_timestamp()
            WHERE t.id = ANY (ARRAY(
                      SELECT c.id FROM task c
                      WHERE c.state = 'waiting' AND c.blocked_on = 0 AND c.kind = next.kind AND c.rank = next.rank
                      ORDER BY c.seq LIMIT wanted FOR NO KEY UPDATE SKIP LOCKED))
              AND t.state = 'waiting' AND t.app_lock IS NULL
            RETURNING 'claim', t.id, t.kind, t.state, t.attempt, NULL::boolean,
                t.args::text, t.logging_cid, t.task_group, t.parent_task, t.immediate, t.reserved_resources_record,
                t.created_at, NULL::float8;
            GET DIAGNOSTICS claimed = ROW_COUNT;
            wanted := wanted - claimed;
        END LOOP;

        RETURN QUERY
        SELECT 'kind', NULL::uuid, k, NULL::task_state, NULL::int, NULL::boolean,
            NULL::text, NULL::text, NULL::uuid, NULL::uuid, NULL::boolean, NULL::text[], NULL::timestamptz, NULL::float8
        FROM unnest(strange) k;

        RETURN QUERY
        SELECT 'due', NULL::uuid, NULL::int, NULL::task_state, NULL::int, NULL::boolean,
            NULL::text, NULL::text, NULL::uuid, NULL::uuid, NULL::boolean, NULL::text[], NULL::timestamptz,
            extract(epoch FROM d.not_before - clock_timestamp())::float8
        FROM (SELECT t.not_before FROM task t
              WHERE t.state = 'waiting' AND t.blocked_on IS NULL ORDER BY t.not_before LIMIT 1) d;
    END IF;

    RETURN QUERY
    SELECT 'cancel', t.id, NULL::int, t.state, t.attempt, NULL::boolean,
        NULL::text, NULL::text, NULL::uuid, NULL::uuid, NULL::boolean, NULL::text[], NULL::timestamptz, NULL::float8
    FROM task t WHERE t.app_lock = worker AND t.state = 'canceling';
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION task_turn IS
    'A worker''s one statement. Ends what it has run (event finish: not ended as asked, see task_finish), claims up to wanted runnable tasks (claim), names kinds that are there and not among known (kind), tells when the next task is due in seconds (due), and which of its tasks are to be canceled (cancel). When recovering from a lost answer it also returns as claimed what it holds but does not name in holding. Fails on task_app_lock_fkey once the worker was declared missing.';

-- +goose Down
DROP FUNCTION task_turn, task_abandoned_finish, task_cancel, task_finish, task_queues_leave, task_queues_lock,
    task_enqueue_due, task_reserves, task_dispatch, task_kinds, reservation_place, domain_shares_write,
    resource_lock_all, resource_lock_buckets, resource_contended, resource_is_domain, resource_bucket;
