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
-- would read whole queues. So rows are named by arrays (id = ANY), which an index finds in the order of
-- the ids, whatever the planner believes, and locks in that order; what belongs to a row comes from the
-- same arrays by a hash join. A look at one row is a subquery with a scalar result or a LIMIT 1. A plan
-- that is forbidden costs so much that PostgreSQL would compile it, for tens of milliseconds: hence jit = off.
-- (SET in a function's head is undone when it returns; nothing of it is left on the server connection.)

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
CREATE FUNCTION domain_own() RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT 'prn:core.domain:018f0000-0000-7000-8000-000000000001'
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION domain_own IS 'The one domain of an installation.';

-- +goose StatementBegin
CREATE FUNCTION task_reserved(record text[]) RETURNS text[] LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN domain_own() = ANY (record) THEN record ELSE record || ('shared:' || domain_own()) END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION task_reserved IS
    'All that a task with this reserved_resources_record reserves: with the share of the domain, which no record names.';

-- +goose StatementBegin
CREATE FUNCTION resources_contended(queues text[]) RETURNS text[] LANGUAGE plpgsql STABLE AS $$
BEGIN
    -- Granted rows stand first and an exclusive grant stands alone, so the last row tells.
    RETURN ARRAY(SELECT q.name FROM (SELECT DISTINCT u FROM unnest(queues) u OFFSET 0) q (name)
                 WHERE (SELECT r.exclusive OR NOT r.granted FROM task_reservation r
                        WHERE r.resource = q.name ORDER BY r.seq DESC LIMIT 1));
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION resources_contended IS 'Those of these resources for which an exclusive reservation is queued, granted or not.';

-- +goose StatementBegin
CREATE FUNCTION resource_lock_buckets(shared text[], exclusive text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    b record;
BEGIN
    IF cardinality(exclusive) = 0 THEN
        PERFORM 1 FROM resource_lock l WHERE l.bucket = ANY (ARRAY(SELECT resource_bucket(r) FROM unnest(shared) r))
        ORDER BY l.bucket FOR SHARE;
    ELSIF cardinality(shared) = 0 THEN
        PERFORM 1 FROM resource_lock l WHERE l.bucket = ANY (ARRAY(SELECT resource_bucket(r) FROM unnest(exclusive) r))
        ORDER BY l.bucket FOR UPDATE;
    ELSE
        -- A held share is never upgraded: two such would deadlock. So the stronger mode comes first.
        FOR b IN SELECT u.bucket, bool_or(u.strong) AS strong
                 FROM (SELECT resource_bucket(r) AS bucket, false AS strong FROM unnest(shared) r
                       UNION ALL SELECT resource_bucket(r), true FROM unnest(exclusive) r) u
                 GROUP BY u.bucket ORDER BY u.bucket
        LOOP
            IF b.strong THEN
                PERFORM 1 FROM resource_lock l WHERE l.bucket = b.bucket FOR UPDATE;
            ELSE
                PERFORM 1 FROM resource_lock l WHERE l.bucket = b.bucket FOR SHARE;
            END IF;
        END LOOP;
    END IF;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION resource_lock_buckets IS 'Locks the buckets of these resources in ascending order until the transaction ends.';

-- +goose StatementBegin
CREATE FUNCTION resource_lock_all(shared text[], exclusive text[], owned boolean) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    contended boolean;
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'tasks are moved in READ COMMITTED transactions only, this one is %', upper(current_setting('transaction_isolation'))
            USING ERRCODE = 'invalid_transaction_state',
            DETAIL = 'A snapshot that is older than the locks would let tasks run together that exclude each other.';
    END IF;
    -- A locked row is read as it is now, so one statement locks a stripe and tells what holds under it.
    IF owned THEN
        SELECT bool_or(l.contended) INTO contended
        FROM (SELECT k.contended FROM resource_lock k WHERE k.bucket < 0 ORDER BY k.bucket FOR UPDATE) l;
    ELSE
        -- The backend's pid spreads the shares of a domain over its stripes.
        SELECT l.contended INTO contended FROM resource_lock l WHERE l.bucket = -1 - pg_backend_pid() % 64 FOR SHARE;
    END IF;
    IF contended OR owned THEN
        -- The domains' queues have rows, which change under the bucket of this name.
        exclusive := exclusive || 'prn:core.domain:'::text;
    END IF;
    IF cardinality(exclusive) = 0 AND cardinality(shared) = 0 THEN
        RETURN contended;
    END IF;
    PERFORM resource_lock_buckets(shared, exclusive);
    RETURN contended;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION resource_lock_all IS
    'Locks the queues of these resources, domains not among them: shared ones against exclusive ones, exclusive ones against all. Locks the domains in share, or, if one is owned, against all. Answers whether an exclusive reservation of a domain was queued: then shares have rows, and their queue is locked, too.';

-- +goose StatementBegin
CREATE FUNCTION resource_lock_all_briefly(shared text[], exclusive text[], owned boolean) RETURNS boolean LANGUAGE plpgsql
SET lock_timeout = '50ms' AS $$
BEGIN
    RETURN resource_lock_all(shared, exclusive, owned);
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION resource_lock_all_briefly IS
    'As resource_lock_all, but waits 50 ms at most for each lock, then fails with lock_not_available: for statements that carry the requests of several callers, of whom one may have to wait for long.';

-- Entering the queues ----------------------------------------------------------------------------

-- +goose StatementBegin
CREATE FUNCTION domain_shares_write(domain text) RETURNS void LANGUAGE sql AS $$
    -- Indexes name every task that is queued and unfinished: runnable, held, abandoned, blocked.
    INSERT INTO task_reservation (resource, seq, task, exclusive, granted)
    SELECT domain, t.seq, t.id, false, true
    FROM (SELECT id, seq, reserved_resources_record FROM task WHERE state = 'waiting' AND blocked_on = 0
          UNION ALL
          SELECT id, seq, reserved_resources_record FROM task WHERE app_lock IS NOT NULL
          UNION ALL
          SELECT id, seq, reserved_resources_record FROM task WHERE app_lock IS NULL AND state = 'canceling'
          UNION ALL
          SELECT id, seq, reserved_resources_record FROM task WHERE app_lock IS NULL AND state = 'running'
          UNION ALL
          SELECT id, seq, reserved_resources_record FROM task
          WHERE id = ANY (ARRAY(SELECT r.task FROM task_reservation r WHERE NOT r.granted))) t
    WHERE 'shared:' || domain = ANY (task_reserved(t.reserved_resources_record))
    ON CONFLICT DO NOTHING;
    UPDATE resource_lock SET contended = true WHERE bucket < 0 AND NOT contended
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION domain_shares_write IS
    'Writes the shares of a domain that have no row, because an exclusive reservation is about to queue behind them. Costs O(unfinished tasks), once per such reservation, under all the stripes.';

-- +goose StatementBegin
CREATE FUNCTION reservation_place(tasks int[], resources text[], exclusives boolean[])
RETURNS TABLE (task int, resource text, exclusive boolean, granted boolean) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    IF tasks[1] = ALL (tasks) THEN
        -- One task does not meet itself.
        RETURN QUERY
        SELECT n.task, n.resource, n.exclusive,
               CASE WHEN n.exclusive THEN tail.contended IS NULL ELSE tail.contended IS NOT TRUE END
        FROM unnest(tasks, resources, exclusives) AS n (task, resource, exclusive)
        LEFT JOIN LATERAL (SELECT r.exclusive OR NOT r.granted AS contended FROM task_reservation r
                           WHERE r.resource = n.resource ORDER BY r.seq DESC LIMIT 1) tail ON true;
        RETURN;
    END IF;
    RETURN QUERY
    WITH new AS MATERIALIZED (
        SELECT * FROM unnest(tasks, resources, exclusives) AS n (task, resource, exclusive)
    ), queue AS MATERIALIZED (
        -- What is there already: nothing, only shared ones, or an exclusive one among them.
        SELECT d.resource, tail.contended
        FROM (SELECT DISTINCT n.resource FROM new n) d
        LEFT JOIN LATERAL (SELECT r.exclusive OR NOT r.granted AS contended FROM task_reservation r
                           WHERE r.resource = d.resource ORDER BY r.seq DESC LIMIT 1) tail ON true
    )
    SELECT n.task, n.resource, n.exclusive,
           CASE WHEN n.exclusive
                THEN q.contended IS NULL AND row_number() OVER place = 1
                ELSE q.contended IS NOT TRUE AND NOT coalesce(bool_or(n.exclusive) OVER before, false)
           END
    FROM new n JOIN queue q ON q.resource = n.resource
    WINDOW place AS (PARTITION BY n.resource ORDER BY n.task),
           before AS (place ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING);
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION reservation_place IS
    'Decides for new reservations, in the order of their tasks, which are granted at once: an exclusive one if its queue is empty, a shared one if no exclusive one is queued. To be asked under the locks.';

-- +goose StatementBegin
CREATE FUNCTION task_kinds(names text[], needed text[], attempts int[], backoffs interval[])
RETURNS int[] LANGUAGE plpgsql AS $$
DECLARE
    ids  int[] := '{}';
    kind int;
    i    int;
BEGIN
    FOR i IN 1 .. cardinality(names) LOOP
        SELECT k.id INTO kind FROM task_kind k
        WHERE k.name = names[i] AND k.versions = needed[i]::jsonb
          AND k.max_attempts = attempts[i] AND k.backoff = backoffs[i];
        EXIT WHEN NOT FOUND;
        ids[i] := kind;
    END LOOP;
    IF cardinality(ids) = cardinality(names) THEN
        RETURN ids;
    END IF;
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
CREATE FUNCTION task_kinds_briefly(names text[], needed text[], attempts int[], backoffs interval[]) RETURNS int[] LANGUAGE plpgsql
SET lock_timeout = '50ms' AS $$
BEGIN
    RETURN task_kinds(names, needed, attempts, backoffs);
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION task_kinds_briefly IS
    'As task_kinds, but waits 50 ms at most for another that writes the same kind: see resource_lock_all_briefly.';

-- +goose StatementBegin
CREATE FUNCTION task_dispatch(
    dispatcher uuid, run_here boolean, parent uuid, parent_attempt int, busy json,
    schedule uuid, schedule_due timestamptz, schedule_next timestamptz,
    kind_names text[], kind_versions text[], kind_attempts int[], kind_backoffs interval[],
    ids uuid[], kinds int[], arguments text[], cids text[], groups uuid[], priorities int[],
    immediates boolean[], deferreds boolean[], not_befores timestamptz[],
    reserving int[], resources text[], exclusives boolean[], impatient boolean)
RETURNS TABLE (task_id uuid, task_state task_state, task_created_at timestamptz) LANGUAGE plpgsql
SET jit = off SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_mergejoin = off SET enable_nestloop = off AS $$
#variable_conflict use_column
DECLARE
    kind_ids int[] := CASE WHEN impatient THEN task_kinds_briefly(kind_names, kind_versions, kind_attempts, kind_backoffs)
                      ELSE task_kinds(kind_names, kind_versions, kind_attempts, kind_backoffs) END;
    due      boolean[]; -- null: all are
    records  text[];    -- arrays as text, for there is no array of arrays; null: all reserve nothing
    owned    text[] := '{}'; -- domains
    weak     text[] := '{}';
    strong   text[] := '{}';
    entries  int[] := '{}';
    names    text[] := '{}';
    modes    boolean[] := '{}';
    grants   boolean[] := '{}';
    blocked  int[];
BEGIN
    IF cardinality(array_remove(not_befores, NULL)) > 0 THEN
        SELECT array_agg(u.t IS NULL OR u.t <= clock_timestamp() ORDER BY u.o) INTO due
        FROM unnest(not_befores) WITH ORDINALITY u (t, o);
    END IF;
    IF cardinality(resources) > 0 THEN
        SELECT coalesce(array_agg(u.r) FILTER (WHERE NOT u.x AND NOT u.domain), '{}'),
               coalesce(array_agg(u.r) FILTER (WHERE u.x AND NOT u.domain), '{}'),
               coalesce(array_agg(DISTINCT u.r) FILTER (WHERE u.x AND u.domain), '{}')
        INTO weak, strong, owned
        FROM (SELECT n.*, resource_is_domain(n.r) AS domain FROM unnest(reserving, resources, exclusives) n (t, r, x)
              WHERE due IS NULL OR due[n.t]) u;
        SELECT array_agg(coalesce(r.reserved, '{}')::text ORDER BY i) INTO records
        FROM generate_subscripts(ids, 1) i
        LEFT JOIN (SELECT u.t, array_agg(CASE WHEN u.x THEN u.r ELSE 'shared:' || u.r END ORDER BY NOT u.x, u.o) AS reserved
                   FROM unnest(reserving, resources, exclusives) WITH ORDINALITY u (t, r, x, o)
                   WHERE u.x OR u.r <> domain_own() GROUP BY u.t) r ON r.t = i;
    END IF;

    -- Joining a queue in share needs only to keep out those who change it for an exclusive one.
    IF (CASE WHEN impatient THEN resource_lock_all_briefly(weak, strong, cardinality(owned) > 0)
             ELSE resource_lock_all(weak, strong, cardinality(owned) > 0) END) OR cardinality(owned) > 0 THEN
        SELECT coalesce(array_agg(e.t), '{}'), coalesce(array_agg(e.r), '{}'), coalesce(array_agg(e.x), '{}')
        INTO entries, names, modes
        FROM (SELECT u.t, u.r, u.x FROM unnest(reserving, resources, exclusives) u (t, r, x) WHERE due IS NULL OR due[u.t]
              UNION ALL
              SELECT i, domain_own(), false FROM generate_subscripts(ids, 1) i
              WHERE (due IS NULL OR due[i]) AND NOT EXISTS
                  (SELECT FROM unnest(reserving, resources) own (t, r) WHERE own.t = i AND own.r = domain_own())) e;
    ELSIF cardinality(resources) > 0 THEN
        SELECT coalesce(array_agg(u.t), '{}'), coalesce(array_agg(u.r), '{}'), coalesce(array_agg(u.x), '{}')
        INTO entries, names, modes
        FROM unnest(reserving, resources, exclusives) u (t, r, x) WHERE NOT resource_is_domain(u.r) AND (due IS NULL OR due[u.t]);
    END IF;

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

    IF cardinality(entries) > 0 THEN
        IF cardinality(owned) > 0 THEN
            PERFORM domain_shares_write(d) FROM unnest(owned) d;
        END IF;
        SELECT array_agg(p.task), array_agg(p.resource), array_agg(p.exclusive), array_agg(p.granted)
        INTO entries, names, modes, grants FROM reservation_place(entries, names, modes) p;
        SELECT array_agg(coalesce(b.n, 0) ORDER BY i) INTO blocked
        FROM generate_subscripts(ids, 1) i
        LEFT JOIN (SELECT e.t, count(*) AS n FROM unnest(entries, grants) e (t, granted)
                   WHERE NOT e.granted GROUP BY e.t) b ON b.t = i;
    END IF;

    RETURN QUERY
    WITH new AS (
        INSERT INTO task AS t (id, kind, args, logging_cid, task_group, priority, rank, immediate, deferred, not_before,
            parent_task, reserved_resources_record, state, app_lock, attempt,
            blocked_on, unblocked_at, started_at, finished_at, error)
        SELECT n.id, kind_ids[n.kind], n.args::json, n.cid, n.in_group, n.priority, CASE WHEN n.immediate THEN -100000 ELSE 0 END - n.priority, n.immediate, n.deferred, n.not_before,
            parent, coalesce(n.reserved::text[], '{}'),
            s.state, CASE s.state WHEN 'running' THEN dispatcher END, (s.state = 'running')::int,
            n.blocked_on, CASE n.blocked_on WHEN 0 THEN n.at END,
            CASE s.state WHEN 'running' THEN n.at END,
            CASE s.state WHEN 'canceled' THEN n.at END,
            CASE s.state WHEN 'canceled' THEN busy END
        FROM (SELECT u.*, CASE WHEN due IS NULL OR due[u.o] THEN coalesce(blocked[u.o], 0) END AS blocked_on,
                  records[u.o] AS reserved, clock_timestamp() AS at
              FROM unnest(ids, kinds, arguments, cids, groups, priorities, immediates, deferreds, not_befores)
                  WITH ORDINALITY u (id, kind, args, cid, in_group, priority, immediate, deferred, not_before, o)
              OFFSET 0) n
        CROSS JOIN LATERAL (SELECT CASE
            WHEN n.immediate AND n.blocked_on = 0 AND run_here THEN 'running'
            WHEN NOT n.deferred AND n.blocked_on > 0 THEN 'canceled'
            ELSE 'waiting' END::task_state AS state OFFSET 0) s
        RETURNING t.id, t.seq, t.state, t.created_at
    ), placed AS (
        INSERT INTO task_reservation (resource, seq, task, exclusive, granted)
        SELECT e.resource, new.seq, new.id, e.exclusive, e.granted
        FROM unnest(entries, names, modes, grants) e (task, resource, exclusive, granted) JOIN new ON new.id = ids[e.task]
        WHERE new.state <> 'canceled'
    )
    SELECT new.id, new.state, new.created_at FROM new;

    IF cardinality(owned) > 0 THEN
        PERFORM domain_shares_drop(); -- the owner may have been canceled
    END IF;
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
    'Inserts tasks, all or none. A due one enters the queues of its resources; an immediate one that nothing blocks is held by the dispatcher at once, if it wants to run it here; one that may not be deferred and is blocked is canceled at once. Sent twice it fails on the primary key. impatient: see resource_lock_all_briefly. PT001: the parent is not held by the dispatcher (any more). PT002: somebody else dispatched this schedule.';

-- +goose StatementBegin
CREATE FUNCTION task_reserves(ids uuid[]) RETURNS TABLE (task int, name text, exclusive boolean, seq bigint)
LANGUAGE sql STABLE AS $$
    SELECT u.o::int, CASE WHEN starts_with(r, 'shared:') THEN substr(r, 8) ELSE r END,
           NOT starts_with(r, 'shared:'), t.seq
    FROM unnest(ids) WITH ORDINALITY u (id, o)
    CROSS JOIN LATERAL (SELECT k.seq, k.reserved_resources_record FROM task k WHERE k.id = u.id LIMIT 1) t
    CROSS JOIN LATERAL unnest(task_reserved(t.reserved_resources_record)) r
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION task_reserves IS 'What these tasks reserve, one row per task and resource; task counts from 1.';

-- +goose StatementBegin
CREATE FUNCTION task_enqueue_due(most int) RETURNS int LANGUAGE plpgsql
SET jit = off SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_mergejoin = off SET enable_nestloop = off AS $$
DECLARE
    ids       uuid[];
    contended boolean;
    owned     text[];
    moved     int;
BEGIN
    SELECT array_agg(d.id ORDER BY d.not_before, d.id) INTO ids
    FROM (SELECT t.id, t.not_before FROM task t
          WHERE t.state = 'waiting' AND t.blocked_on IS NULL AND t.not_before <= clock_timestamp()
          ORDER BY t.not_before LIMIT most) d;
    IF ids IS NULL THEN
        RETURN 0;
    END IF;
    owned := ARRAY(SELECT DISTINCT r.name FROM task_reserves(ids) r WHERE r.exclusive AND resource_is_domain(r.name));
    contended := resource_lock_all(
        ARRAY(SELECT DISTINCT r.name FROM task_reserves(ids) r WHERE NOT r.exclusive AND NOT resource_is_domain(r.name)),
        ARRAY(SELECT DISTINCT r.name FROM task_reserves(ids) r WHERE r.exclusive AND NOT resource_is_domain(r.name)),
        cardinality(owned) > 0);
    -- Whom another has locked, that one is moving.
    SELECT array_agg(l.id ORDER BY l.not_before, l.id) INTO ids
    FROM (SELECT t.id, t.not_before FROM task t
          WHERE t.id = ANY (ids) AND t.state = 'waiting' AND t.blocked_on IS NULL
          ORDER BY t.id FOR NO KEY UPDATE SKIP LOCKED) l;
    IF ids IS NULL THEN
        RETURN 0;
    END IF;
    owned := ARRAY(SELECT DISTINCT r.name FROM task_reserves(ids) r WHERE r.exclusive AND resource_is_domain(r.name));
    -- seq first, in the order of their due times: it is their place.
    FOR i IN 1 .. cardinality(ids) LOOP
        UPDATE task t SET seq = DEFAULT WHERE t.id = ids[i];
    END LOOP;
    PERFORM domain_shares_write(d) FROM unnest(owned) d;
    WITH entry AS MATERIALIZED (
        SELECT * FROM reservation_place(
            ARRAY(SELECT r.task FROM task_reserves(ids) r WHERE contended OR cardinality(owned) > 0 OR NOT resource_is_domain(r.name) ORDER BY r.task, r.name),
            ARRAY(SELECT r.name FROM task_reserves(ids) r WHERE contended OR cardinality(owned) > 0 OR NOT resource_is_domain(r.name) ORDER BY r.task, r.name),
            ARRAY(SELECT r.exclusive FROM task_reserves(ids) r WHERE contended OR cardinality(owned) > 0 OR NOT resource_is_domain(r.name) ORDER BY r.task, r.name))
    ), placed AS (
        INSERT INTO task_reservation (resource, seq, task, exclusive, granted)
        SELECT e.resource, t.seq, t.id, e.exclusive, e.granted FROM entry e
        CROSS JOIN LATERAL (SELECT k.seq, k.id FROM task k WHERE k.id = ids[e.task] LIMIT 1) t
    ), queued AS (
        UPDATE task t SET blocked_on = b.on_n, unblocked_at = CASE b.on_n WHEN 0 THEN clock_timestamp() END
        FROM (SELECT u.id, count(e.task) FILTER (WHERE NOT e.granted) AS on_n
              FROM unnest(ids) WITH ORDINALITY u (id, o) LEFT JOIN entry e ON e.task = u.o GROUP BY u.id) b
        WHERE t.id = b.id AND t.id = ANY (ids)
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
CREATE FUNCTION domain_shares_drop() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT true FROM task_reservation r WHERE r.exclusive AND resource_is_domain(r.resource) LIMIT 1) THEN
        RETURN;
    END IF;
    DELETE FROM task_reservation r WHERE resource_is_domain(r.resource);
    UPDATE resource_lock l SET contended = false WHERE l.bucket < 0 AND l.contended;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION domain_shares_drop IS
    'Deletes the shares of domains, which are all granted, if no exclusive reservation of one is queued any more. Costs O(queued reservations), once per such reservation, under all the stripes.';

-- +goose StatementBegin
CREATE FUNCTION task_leaving(ids uuid[], domains boolean, OUT names text[], OUT seqs bigint[], OUT tasks uuid[],
    OUT exclusive text[], OUT shared text[], OUT owned text[]) LANGUAGE plpgsql STABLE AS $$
BEGIN
    SELECT coalesce(array_agg(n.name), '{}'), coalesce(array_agg(t.seq), '{}'), coalesce(array_agg(t.id), '{}'),
           coalesce(array_agg(n.name) FILTER (WHERE n.name = r), '{}'),
           coalesce(array_agg(n.name) FILTER (WHERE n.name <> r), '{}'),
           coalesce(array_agg(r) FILTER (WHERE resource_is_domain(r)), '{}')
    INTO names, seqs, tasks, exclusive, shared, owned
    FROM task t
    CROSS JOIN LATERAL unnest(CASE WHEN domains THEN task_reserved(t.reserved_resources_record) ELSE t.reserved_resources_record END) r
    CROSS JOIN LATERAL (SELECT CASE WHEN starts_with(r, 'shared:') THEN substr(r, 8) ELSE r END OFFSET 0) n (name)
    WHERE t.id = ANY (ids) AND (domains OR NOT starts_with(r, 'shared:prn:core.domain:'));
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION task_leaving IS
    'What these tasks reserve, shares of domains only if they have rows (domains). names, seqs and tasks are parallel: a resource, the place there, the task. exclusive and shared are the names by mode, which shared may repeat; owned are the domains among the exclusive ones.';

-- +goose StatementBegin
CREATE FUNCTION task_queues_lock(ids uuid[], bare boolean, OUT names text[], OUT seqs bigint[], OUT tasks uuid[], OUT freed text[],
    OUT owned text[], OUT domains boolean) LANGUAGE plpgsql AS $$
DECLARE
    l         record;
    contended text[];
    weak      text[] := '{}';
BEGIN
    IF bare THEN
        domains := resource_lock_all('{}', '{}', false);
        IF NOT domains THEN
            names := '{}';
            freed := '{}';
            owned := '{}';
            RETURN;
        END IF;
    END IF;
    l := task_leaving(ids, false);
    freed := l.exclusive;
    owned := l.owned;
    IF cardinality(l.shared) > 0 THEN
        -- Leaving a queue in share matters to nobody unless an exclusive reservation is queued there.
        contended := resources_contended(l.shared);
        freed := freed || contended;
        weak := ARRAY(SELECT DISTINCT u FROM unnest(l.shared) u WHERE u <> ALL (contended));
    END IF;
    IF domains THEN
        NULL; -- bare: there is nothing else to lock
    ELSIF cardinality(owned) > 0 THEN
        domains := true;
        PERFORM resource_lock_all(weak, ARRAY(SELECT f FROM unnest(freed) f WHERE NOT resource_is_domain(f)), true);
    ELSE
        domains := resource_lock_all(weak, freed, false);
    END IF;
    IF domains THEN
        l := task_leaving(ids, true);
        freed := freed || ARRAY(SELECT DISTINCT u FROM unnest(l.shared) u WHERE resource_is_domain(u));
    END IF;
    IF cardinality(weak) > 0 AND cardinality(resources_contended(weak)) > 0 THEN
        RAISE EXCEPTION 'an exclusive reservation came in between' USING ERRCODE = 'serialization_failure';
    END IF;
    names := l.names;
    seqs := l.seqs;
    tasks := l.tasks;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION task_queues_lock IS
    'Locks the queues that these tasks, bare if they reserve nothing but a share of their domain, may leave. names, seqs, tasks and owned are as of task_leaving, domains tells whether an exclusive reservation of one is queued, freed are the queues in which others may wait. Looks, locks, looks again; serialization_failure means that the caller should send its statement again.';

-- +goose StatementBegin
CREATE FUNCTION task_queues_lock_briefly(ids uuid[], bare boolean) RETURNS record LANGUAGE plpgsql
SET lock_timeout = '50ms' AS $$
BEGIN
    RETURN task_queues_lock(ids, bare);
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION task_queues_lock_briefly IS
    'As task_queues_lock, but waits 50 ms at most for each lock: see resource_lock_all_briefly.';

-- +goose StatementBegin
CREATE FUNCTION task_queues_leave(
    names text[], seqs bigint[], tasks uuid[], freed text[], owned text[], ended uuid[])
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    heads   text[];    -- queues that change, and from where on
    froms   bigint[];
    held    boolean[]; -- by who left
    rows    tid[];
    granted uuid[];
BEGIN
    IF cardinality(names) = 0 THEN
        RETURN;
    END IF;
    -- By ctid, found one by one: under the locks nobody else changes these rows. Whoever leaves tells from
    -- where on the next in line is to be looked for: no index needs to know what is granted. Who held a queue
    -- alone stood first, and what is before is dead. Of exclusive ones that waited, only the first may have
    -- been what ended the prefix of shared ones.
    WITH gone AS (
        DELETE FROM task_reservation r WHERE r.ctid = ANY (ARRAY(
            SELECT own.ctid FROM unnest(names, seqs, tasks) u (name, seq, task)
            CROSS JOIN LATERAL (SELECT o.ctid FROM task_reservation o
                                WHERE o.resource = u.name AND o.seq = u.seq LIMIT 1) own
            WHERE ended IS NULL OR u.task = ANY (ended)))
        RETURNING r.resource, r.seq, r.exclusive, r.granted
    )
    SELECT array_agg(g.resource), array_agg(g.place), array_agg(g.granted) INTO heads, froms, held
    FROM (SELECT l.resource, l.granted, min(CASE WHEN l.exclusive THEN l.seq ELSE -1 END) AS place FROM gone l
          WHERE l.exclusive OR (l.granted AND l.resource IN (SELECT unnest(freed))) GROUP BY l.resource, l.granted) g;
    -- The longest compatible prefix of each queue: the next one, if nothing that excludes it stands before it,
    -- and behind a shared one the further shared ones up to the first exclusive one.
    SELECT array_agg(n.ctid), array_agg(n.task) INTO rows, granted
    FROM unnest(heads, froms, held) h (resource, place, held)
    CROSS JOIN LATERAL (SELECT r.ctid, r.task, r.seq, r.exclusive, r.granted FROM task_reservation r
                        WHERE r.resource = h.resource AND r.seq > h.place ORDER BY r.seq LIMIT 1) p
    CROSS JOIN LATERAL (SELECT p.ctid, p.task WHERE p.exclusive
                        UNION ALL
                        SELECT o.ctid, o.task FROM task_reservation o
                        WHERE NOT p.exclusive AND o.resource = h.resource
                          AND o.seq BETWEEN p.seq
                              AND coalesce((SELECT x.seq - 1 FROM task_reservation x
                                            WHERE x.resource = h.resource AND x.exclusive AND x.seq > p.seq
                                            ORDER BY x.seq LIMIT 1), 9223372036854775807)
                        OFFSET 0) n
    WHERE NOT p.granted
      AND (h.held OR (NOT p.exclusive AND (SELECT b.granted AND NOT b.exclusive FROM task_reservation b
                                            WHERE b.resource = h.resource AND b.seq < h.place ORDER BY b.seq DESC LIMIT 1)));
    IF rows IS NOT NULL THEN
        UPDATE task_reservation r SET granted = true WHERE r.ctid = ANY (rows);
        -- Another release may free the same task at the same time: the row lock makes the second see
        -- the first's count.
        UPDATE task t SET blocked_on = t.blocked_on - n.n,
            unblocked_at = CASE t.blocked_on WHEN n.n THEN clock_timestamp() END
        FROM (SELECT g.task, count(*) AS n FROM unnest(granted) g (task) GROUP BY g.task ORDER BY g.task) n
        WHERE t.id = n.task AND t.id = ANY (granted);
    END IF;
    IF cardinality(owned) > 0 THEN
        PERFORM domain_shares_drop();
    END IF;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION task_queues_leave IS
    'Takes reservations out of the queues, those of the tasks that have ended (null: all), and grants what that frees. Under the locks of task_queues_lock.';

-- +goose StatementBegin
CREATE FUNCTION task_finish_sole(holder uuid, ended uuid, run int, outcome text, sole text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    contended boolean;
    place     bigint;
    next      record;
BEGIN
    -- In the order of all locks: stripe, bucket, app. The bucket is not locked if the stripe, once it is locked,
    -- is contended: then that of the domains may come before.
    IF sole = '' THEN
        SELECT l.contended INTO contended FROM resource_lock l, app_status a
        WHERE l.bucket = -1 - pg_backend_pid() % 64 AND a.id = holder FOR SHARE OF l FOR KEY SHARE OF a;
    ELSIF sole <> '' THEN
        SELECT l.contended INTO contended
        FROM (SELECT k.contended FROM resource_lock k WHERE k.bucket = -1 - pg_backend_pid() % 64 AND NOT k.contended FOR SHARE) l,
            resource_lock b, app_status a
        WHERE b.bucket = resource_bucket(sole) AND a.id = holder FOR UPDATE OF b FOR KEY SHARE OF a;
    END IF;
    IF contended IS NOT FALSE THEN
        RETURN false;
    END IF;
    UPDATE task t SET app_lock = NULL, state = 'completed', finished_at = clock_timestamp(),
        result = nullif(outcome, '')::json, error = NULL
    WHERE t.id = ended AND t.app_lock = holder AND t.attempt = run AND t.state = 'running'
    RETURNING t.seq INTO place;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    IF sole = '' THEN
        RETURN true;
    END IF;
    SELECT r.ctid, r.task, r.exclusive INTO next FROM task_reservation r
    WHERE r.resource = sole AND r.seq > place ORDER BY r.seq LIMIT 1;
    IF NOT next.exclusive THEN -- and others behind it, perhaps
        PERFORM task_queues_leave(ARRAY[sole], ARRAY[place], ARRAY[ended], ARRAY[sole], '{}', NULL);
        RETURN true;
    END IF;
    DELETE FROM task_reservation r WHERE r.resource = sole AND r.seq = place;
    IF next.task IS NOT NULL THEN
        UPDATE task_reservation r SET granted = true WHERE r.ctid = next.ctid;
        UPDATE task t SET blocked_on = t.blocked_on - 1, unblocked_at = CASE t.blocked_on WHEN 1 THEN clock_timestamp() END
        WHERE t.id = next.task;
    END IF;
    RETURN true;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION task_finish_sole IS
    'Completes one task, as task_finish does, in half as many statements: what it reserves is known. sole: one resource, which it reserves exclusively, or the empty text, and nothing else but a share of its domain; it has no progress reports. False: nothing was done but locking, since sole is null, or a domain is contended, or the task is not running here.';

-- +goose StatementBegin
CREATE FUNCTION task_finish(holder uuid, ids uuid[], attempts int[], states text[], results text[], errors text[], sole text, impatient boolean)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    bare    boolean := coalesce(sole = '', false);
    leaving record;
    pauses  interval[]; -- before the next attempt, of those that get one
    ended   uuid[];
    strange boolean;
BEGIN
    leaving := CASE WHEN impatient THEN task_queues_lock_briefly(ids, bare) ELSE task_queues_lock(ids, bare) END;
    IF holder IS NOT NULL THEN
        PERFORM 1 FROM app_status a WHERE a.id = holder FOR KEY SHARE;
    END IF;
    IF 'failed' = ANY (states) THEN
        -- The exponent's bound keeps the product within what an interval can hold.
        SELECT array_agg((SELECT least(least(k.backoff, interval '1 hour') * power(2, least(u.attempt - 1, 20)), interval '1 hour')
                          FROM task_kind k WHERE k.id = (SELECT t.kind FROM task t WHERE t.id = u.id)
                            AND u.attempt < k.max_attempts AND u.state = 'failed') ORDER BY u.o)
        INTO pauses FROM unnest(ids, attempts, states) WITH ORDINALITY u (id, attempt, state, o);
    END IF;
    -- Named twice: the index finds the rows in the order of their ids, the join what belongs to each.
    WITH done AS (
        UPDATE task t SET app_lock = NULL,
            state = CASE WHEN t.state = 'canceling' THEN 'canceled' WHEN u.pause IS NOT NULL THEN 'waiting' ELSE u.state END::task_state,
            finished_at = CASE WHEN t.state = 'canceling' OR u.pause IS NULL THEN clock_timestamp() END,
            result = CASE WHEN t.state = 'running' AND u.state = 'completed' THEN nullif(u.result, '')::json END,
            error = CASE t.state WHEN 'running' THEN nullif(u.error, '')::json END,
            not_before = CASE WHEN t.state = 'canceling' OR u.pause IS NULL THEN t.not_before ELSE clock_timestamp() + u.pause END,
            blocked_on = CASE WHEN t.state = 'canceling' OR u.pause IS NULL THEN t.blocked_on END,
            unblocked_at = CASE WHEN t.state = 'canceling' OR u.pause IS NULL THEN t.unblocked_at END
        FROM unnest(ids, attempts, states, results, errors, pauses) u (id, attempt, state, result, error, pause)
        WHERE t.id = u.id AND t.id = ANY (ids) AND t.app_lock IS NOT DISTINCT FROM holder AND t.attempt = u.attempt
          AND t.state IN ('running', 'canceling')
        RETURNING t.id, t.state::text <> u.state AS strange
    )
    SELECT coalesce(array_agg(d.id), '{}'), bool_or(d.strange) INTO ended, strange FROM done d;
    IF cardinality(leaving.names) > 0 THEN
        IF cardinality(ended) = cardinality(ids) THEN
            PERFORM task_queues_leave(leaving.names, leaving.seqs, leaving.tasks, leaving.freed, leaving.owned, NULL);
        ELSE
            PERFORM task_queues_leave(leaving.names, leaving.seqs, leaving.tasks, leaving.freed, leaving.owned, ended);
        END IF;
    END IF;
    IF NOT bare THEN
        UPDATE progress_report p SET state = (
            SELECT CASE t.state WHEN 'waiting' THEN 'failed' ELSE t.state END FROM task t WHERE t.id = p.task_id)
        WHERE p.task_id = ANY (ended) AND p.state = 'running';
    END IF;
    RETURN strange IS NOT FALSE OR cardinality(ended) < cardinality(ids);
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION task_finish IS
    'Ends the attempts of tasks that holder holds (null: that nobody holds any more): into the state asked for, or canceled if a cancel came first, or waiting again if the kind allows another attempt. sole: the empty text if they reserve nothing but a share of their domain, and have no progress reports; else it tells nothing here. impatient: see resource_lock_all_briefly. Answers whether some did not end as asked: see task_finished.';

-- +goose StatementBegin
CREATE FUNCTION task_finished(ids uuid[], attempts int[], states text[], errors text[])
RETURNS TABLE (task_id uuid, task_state text, task_attempt int, recorded boolean) LANGUAGE sql STABLE AS $$
    SELECT u.id, t.state::text, t.attempt, t.recorded IS TRUE
    FROM unnest(ids, attempts, states, errors) u (id, attempt, state, error)
    LEFT JOIN LATERAL (
        SELECT k.state, k.attempt, k.attempt = u.attempt AND k.app_lock IS NULL
            AND (k.state = 'canceled' OR k.error::text IS NOT DISTINCT FROM nullif(u.error, ''))
            AND (k.state::text IN (u.state, 'canceled') OR (k.state = 'waiting' AND u.state = 'failed')) AS recorded
        FROM task k WHERE k.id = u.id LIMIT 1) t ON true
    WHERE t.recorded IS NOT TRUE OR t.state::text <> u.state
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION task_finished IS
    'Which of these attempts have not ended as was asked. recorded is false where nothing was written, because the lock is lost. Sent twice, the second is recorded, too.';

-- +goose StatementBegin
CREATE FUNCTION task_cancel(ids uuid[]) RETURNS TABLE (task_id uuid, task_state task_state, changed boolean)
LANGUAGE plpgsql
SET jit = off SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_mergejoin = off SET enable_nestloop = off AS $$
#variable_conflict use_column
DECLARE
    leaving record := task_queues_lock(ids, false);
    fresh   record;
    ended   uuid[];
    asked   uuid[];
BEGIN
    PERFORM 1 FROM app_status a
    WHERE a.id = ANY (ARRAY(SELECT t.app_lock FROM task t WHERE t.id = ANY (ids) AND t.app_lock IS NOT NULL))
    ORDER BY a.id FOR KEY SHARE;
    PERFORM 1 FROM task t WHERE t.id = ANY (ids) ORDER BY t.id FOR NO KEY UPDATE;
    -- A task that was not due may have entered its queues while locks were waited for.
    fresh := task_leaving(ids, leaving.domains);
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
    PERFORM task_queues_leave(fresh.names, fresh.seqs, fresh.tasks, leaving.freed, leaving.owned, ended);
    RETURN QUERY SELECT t.id, t.state, t.id = ANY (ended || asked) FROM task t WHERE t.id = ANY (ids) ORDER BY t.id;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION task_cancel IS
    'Cancels what waits at once; asks the holder of what runs (canceling); leaves the rest as it is. Returns the tasks that exist, as they are now.';

-- +goose StatementBegin
CREATE FUNCTION task_abandoned_finish(most int, error text)
RETURNS TABLE (task_id uuid, task_state task_state) LANGUAGE plpgsql
SET jit = off SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_mergejoin = off SET enable_nestloop = off AS $$
#variable_conflict use_column
DECLARE
    ids      uuid[];
    attempts int[];
BEGIN
    SELECT array_agg(a.id ORDER BY a.id), array_agg(a.attempt ORDER BY a.id) INTO ids, attempts
    FROM (SELECT t.id, t.attempt FROM task t WHERE t.app_lock IS NULL AND t.state = 'canceling'
          UNION ALL
          SELECT t.id, t.attempt FROM task t WHERE t.app_lock IS NULL AND t.state = 'running' LIMIT most) a;
    IF ids IS NULL THEN
        RETURN;
    END IF;
    PERFORM task_finish(NULL, ids, attempts, array_fill('failed'::text, ARRAY[cardinality(ids)]),
        array_fill(''::text, ARRAY[cardinality(ids)]), array_fill(error, ARRAY[cardinality(ids)]), NULL, false);
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
    ids uuid[], attempts int[], states text[], results text[], errors text[], sole text, quick boolean,
    searching boolean, seen_kinds int[], seen_ranks int[], seen_heads timestamptz[], impatient boolean)
RETURNS TABLE (event text, task_id uuid, task_kind int, task_state text, task_attempt int, recorded boolean,
    arguments text, cid text, in_group uuid, parent uuid, immediate boolean, reserved text[],
    created timestamptz, due_in double precision) LANGUAGE plpgsql
SET jit = off SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_mergejoin = off SET enable_nestloop = off AS $$
#variable_conflict use_column
DECLARE
    -- Few, and with few statements on the short way: an expression is made ready anew in each transaction.
    claimed int;
    hit     boolean;
BEGIN
    IF ids IS NOT NULL AND cardinality(ids) > 0 -- null AND … would ask the rest
        AND (sole IS NULL OR cardinality(ids) > 1 OR states[1] <> 'completed' OR NOT task_finish_sole(worker, ids[1], attempts[1], results[1], sole))
        AND task_finish(worker, ids, attempts, states, results, errors, sole, impatient) THEN
        RETURN QUERY
        SELECT 'finish', f.task_id, 0, coalesce(f.task_state, ''), coalesce(f.task_attempt, 0), f.recorded,
            '', '', NULL::uuid, NULL::uuid, false, NULL::text[], NULL::timestamptz, 0::float8
        FROM task_finished(ids, attempts, states, errors) f;
    END IF;

    IF recovering THEN
        RETURN QUERY
        SELECT 'claim', t.id, t.kind, '', t.attempt, false,
            t.args::text, t.logging_cid, t.task_group, t.parent_task, t.immediate, t.reserved_resources_record,
            t.created_at, 0::float8
        FROM task t WHERE t.app_lock = worker AND (t.id = ANY (holding)) IS NOT TRUE
          -- What was started as it was dispatched runs inside the dispatcher's call, not in a slot.
          AND t.started_at <> t.unblocked_at;
        GET DIAGNOSTICS claimed = ROW_COUNT;
        wanted := wanted - claimed;
    END IF;

    WHILE wanted > 0 LOOP
        IF searching THEN
            -- One look per kind and rank that is there, whatever stands behind each head, and one between
            -- those that were seen before: those begin where they were seen to. A kind that this worker
            -- cannot run costs it one look, however many tasks of it there are. (A scan of an index does not
            -- end where a pair is no longer less than another, so the bounds are of single columns.)
            DECLARE
                seen    int := coalesce(cardinality(seen_kinds), 0);
                next    record;
                at_kind int := 0;
                at_rank int := 0;
                kinds   int[] := '{}';
                ranks   int[] := '{}';
                heads   timestamptz[] := '{}';
                moved   boolean := false;
                strange int[] := '{}';
            BEGIN
                IF seen > 1 THEN
                    SELECT array_agg(u.kind ORDER BY u.kind, u.rank), array_agg(u.rank ORDER BY u.kind, u.rank),
                        array_agg(u.head ORDER BY u.kind, u.rank) INTO seen_kinds, seen_ranks, seen_heads
                    FROM unnest(seen_kinds, seen_ranks, seen_heads) u (kind, rank, head);
                END IF;
                FOR i IN 1 .. seen + 1 LOOP
                    LOOP
                        SELECT u.* INTO next FROM (
                            (SELECT t.kind, t.rank, t.unblocked_at FROM task t
                             WHERE t.state = 'waiting' AND t.blocked_on = 0 AND t.kind = at_kind AND t.rank > at_rank
                               AND t.rank < CASE seen_kinds[i] WHEN at_kind THEN seen_ranks[i] ELSE 2147483647 END
                             ORDER BY t.kind, t.rank, t.unblocked_at LIMIT 1)
                            UNION ALL
                            (SELECT t.kind, t.rank, t.unblocked_at FROM task t
                             WHERE t.state = 'waiting' AND t.blocked_on = 0 AND t.kind > at_kind
                               AND t.kind < coalesce(seen_kinds[i], 2147483647)
                             ORDER BY t.kind, t.rank, t.unblocked_at LIMIT 1)
                            UNION ALL
                            (SELECT t.kind, t.rank, t.unblocked_at FROM task t
                             WHERE t.state = 'waiting' AND t.blocked_on = 0 AND t.kind = nullif(seen_kinds[i], at_kind)
                               AND t.rank < seen_ranks[i]
                             ORDER BY t.kind, t.rank, t.unblocked_at LIMIT 1)) u
                        LIMIT 1;
                        EXIT WHEN NOT FOUND;
                        at_kind := next.kind;
                        at_rank := next.rank;
                        IF at_kind = ANY (runnable) THEN
                            kinds := kinds || at_kind;
                            ranks := ranks || at_rank;
                            heads := heads || next.unblocked_at;
                            moved := true;
                        ELSE
                            IF (at_kind = ANY (known)) IS NOT TRUE THEN
                                strange := strange || at_kind;
                            END IF;
                            at_rank := 2147483647; -- on to the next kind, whatever ranks this one has
                        END IF;
                    END LOOP;
                    EXIT WHEN i > seen;
                    at_kind := seen_kinds[i];
                    at_rank := seen_ranks[i];
                    SELECT t.unblocked_at INTO next FROM task t
                    WHERE t.state = 'waiting' AND t.blocked_on = 0 AND t.kind = at_kind AND t.rank = at_rank AND t.unblocked_at >= seen_heads[i]
                    ORDER BY t.unblocked_at LIMIT 1;
                    kinds := kinds || at_kind;
                    ranks := ranks || at_rank;
                    heads := heads || CASE WHEN FOUND THEN next.unblocked_at ELSE clock_timestamp() END;
                    moved := moved OR heads[cardinality(heads)] > seen_heads[i] + interval '1 s';
                END LOOP;
                IF moved THEN
                    -- Some of what was unblocked earlier may not be committed yet.
                    RETURN QUERY
                    SELECT 'head', NULL::uuid, u.kind, '', u.rank, false, '', '', NULL::uuid, NULL::uuid, false, NULL::text[],
                        u.head - interval '500 ms', 0::float8
                    FROM unnest(kinds, ranks, heads) u (kind, rank, head);
                END IF;
                IF cardinality(strange) > 0 THEN
                    RETURN QUERY
                    SELECT 'kind', NULL::uuid, k, '', 0, false, '', '', NULL::uuid, NULL::uuid, false, NULL::text[], NULL::timestamptz, 0::float8
                    FROM unnest(strange) k;
                END IF;
                seen_kinds := kinds;
                seen_ranks := ranks;
                seen_heads := heads;
            END;
        END IF;
        IF cardinality(seen_kinds) > 1 THEN
            SELECT array_agg(u.kind ORDER BY u.rank, u.head), array_agg(u.rank ORDER BY u.rank, u.head),
                array_agg(u.head ORDER BY u.rank, u.head) INTO seen_kinds, seen_ranks, seen_heads
            FROM unnest(seen_kinds, seen_ranks, seen_heads) u (kind, rank, head);
        END IF;

        hit := false;
        FOR i IN 1 .. coalesce(cardinality(seen_kinds), 0) LOOP
            -- By ctid: the rows are locked as they were found.
            RETURN QUERY
            UPDATE task t SET app_lock = worker, state = 'running', attempt = t.attempt + 1, started_at = clock_timestamp()
            WHERE t.ctid = ANY (ARRAY(
                      SELECT c.ctid FROM task c
                      WHERE c.state = 'waiting' AND c.blocked_on = 0 AND c.kind = seen_kinds[i] AND c.rank = seen_ranks[i] AND c.unblocked_at >= seen_heads[i]
                      ORDER BY c.unblocked_at LIMIT wanted FOR NO KEY UPDATE SKIP LOCKED))
              AND t.state = 'waiting' AND t.app_lock IS NULL
            RETURNING 'claim', t.id, t.kind, '', t.attempt, false,
                t.args::text, t.logging_cid, t.task_group, t.parent_task, t.immediate, t.reserved_resources_record,
                t.created_at, 0::float8;
            GET DIAGNOSTICS claimed = ROW_COUNT;
            IF claimed > 0 THEN
                hit := true;
                wanted := wanted - claimed;
                EXIT WHEN wanted <= 0;
            END IF;
        END LOOP;
        EXIT WHEN searching OR hit;
        searching := true;
    END LOOP;

    IF searching AND wanted > 0 THEN
        RETURN QUERY
        SELECT 'due', NULL::uuid, 0, '', 0, false, '', '', NULL::uuid, NULL::uuid, false, NULL::text[], NULL::timestamptz,
            extract(epoch FROM d.not_before - clock_timestamp())::float8
        FROM (SELECT t.not_before FROM task t
              WHERE t.state = 'waiting' AND t.blocked_on IS NULL ORDER BY t.not_before LIMIT 1) d;
    END IF;

    IF NOT quick THEN
        RETURN QUERY
        SELECT 'cancel', t.id, 0, t.state::text, t.attempt, false, '', '', NULL::uuid, NULL::uuid, false, NULL::text[], NULL::timestamptz, 0::float8
        FROM task t WHERE t.app_lock = worker AND t.state = 'canceling';
    END IF;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION task_turn IS
    'A worker''s one statement. Ends what it has run (event finish: not ended as asked, see task_finish), claims up to wanted runnable tasks (claim), names kinds that are there and not among known (kind), tells, if that has moved on, where the ready tasks of each kind and rank (in task_attempt) begin, so that the next turn may begin there (head: the seen_ parameters, in any order; a look at everything now and then finds what was committed late). If it is not searching, it first takes from where the seen_ ones begin, and looks for other kinds and ranks only if those have none: without that look it names no kind, no head, and nothing that is due. It tells, if there were fewer tasks than wanted, when the next one is due in seconds (due), and, unless it is quick, which of its tasks are to be canceled (cancel). sole: see task_finish_sole, which ends a single task if it can, and task_finish. impatient: see task_finish. When recovering from a lost answer it also returns as claimed what it holds but does not name in holding. Fails on task_app_lock_fkey once the worker was declared missing.';

-- Processes --------------------------------------------------------------------------------------

-- +goose StatementBegin
CREATE FUNCTION app_count(of app_type) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM app_fleet f WHERE f.app_type = of AND f.counted_at < now() - interval '1 s' FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND AND (SELECT true FROM app_fleet f WHERE f.app_type = of) THEN
        RETURN; -- another is counting, or just has
    END IF;
    INSERT INTO app_fleet AS f (app_type, online, housekeepers, registered, counted_at)
    SELECT of, count(*) FILTER (WHERE a.app_type = of AND a.last_heartbeat + a.ttl >= now()),
           count(*) FILTER (WHERE a.app_type = of AND a.last_heartbeat + a.ttl >= now() AND a.housekeeping),
           coalesce(max(a.ordinal), 0), clock_timestamp()
    FROM app_status a
    ON CONFLICT (app_type) DO UPDATE SET online = excluded.online, housekeepers = excluded.housekeepers,
        registered = greatest(f.registered, excluded.registered), counted_at = excluded.counted_at
    WHERE f.counted_at < now() - interval '1 s'; -- else somebody has just made the first count
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION app_count IS
    'Counts the processes of a type that are online, for app_fleet, unless another does, or has within a second. Reads the whole of app_status; all together do it once a second, however many they are. Waits for nobody, but at the very first count.';

-- +goose StatementBegin
CREATE FUNCTION app_register(me uuid, of app_type, called text, has jsonb, knows text[], lease interval, keeps_house boolean,
    OUT online int, OUT housekeepers int) LANGUAGE plpgsql
SET jit = off SET enable_seqscan = off AS $$
DECLARE
    fleet app_fleet;
    mine  bigint;
    since int;
BEGIN
    INSERT INTO app_status AS a (id, app_type, name, versions, task_names, ttl, housekeeping)
    VALUES (me, of, called, has, knows, lease, keeps_house)
    ON CONFLICT (id) DO UPDATE SET last_heartbeat = now()
    RETURNING a.ordinal INTO mine;
    SELECT * INTO fleet FROM app_fleet f WHERE f.app_type = of;
    IF fleet.counted_at IS NULL OR fleet.counted_at < now() - interval '1 s' THEN
        PERFORM app_count(of);
        SELECT * INTO fleet FROM app_fleet f WHERE f.app_type = of;
    END IF;
    -- Those since the count, this one among them, are taken to be of this type, still there, and as many of
    -- them to keep house as of those before. Who drew its ordinal before the count, and is not in it, came at
    -- the same moment as those between.
    since := CASE WHEN mine >= fleet.registered THEN mine - fleet.registered
        ELSE least(fleet.registered - mine, greatest(fleet.registered - fleet.online, 0)) END;
    online := fleet.online + since;
    housekeepers := greatest(fleet.housekeepers + since * fleet.housekeepers / greatest(fleet.online, 1), keeps_house::int);
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION app_register IS
    'Writes the row of a process that starts, and answers how many of its type are online, it included, and how many of them keep house: the last count and all that have registered since, which is rather too many than too few. A second send of the same id changes nothing but the beat.';

-- +goose StatementBegin
CREATE FUNCTION app_beat(me uuid, patience interval, foreign_kinds int[]) RETURNS int[] LANGUAGE plpgsql
SET jit = off SET enable_seqscan = off AS $$
DECLARE
    mine         app_type;
    online       int;
    housekeepers int;
    since        int; -- have registered since the count, as far as this one knows
    old          boolean;
    runnable     int := 0;
    head         int;
    waits        timestamptz;
BEGIN
    UPDATE app_status a SET last_heartbeat = now() FROM app_fleet f WHERE a.id = me AND f.app_type = a.app_type
    RETURNING f.online, f.housekeepers, greatest(a.ordinal - f.registered, 0), f.counted_at < now() - interval '1 s'
    INTO online, housekeepers, since, old;
    IF old IS NOT FALSE THEN
        SELECT a.app_type INTO mine FROM app_status a WHERE a.id = me;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
        PERFORM app_count(mine);
        IF old IS NULL THEN -- the first count: there was nothing to join
            UPDATE app_status a SET last_heartbeat = now() WHERE a.id = me;
        END IF;
        SELECT f.online, f.housekeepers, greatest(a.ordinal - f.registered, 0) INTO online, housekeepers, since
        FROM app_fleet f, (SELECT k.ordinal FROM app_status k WHERE k.id = me) a WHERE f.app_type = mine;
    END IF;
    IF patience IS NOT NULL THEN
        SELECT t.kind, t.unblocked_at INTO head, waits FROM task t
        WHERE t.state = 'waiting' AND t.blocked_on = 0 ORDER BY t.kind, t.rank, t.unblocked_at LIMIT 1;
        WHILE FOUND LOOP
            IF waits <= now() - patience AND head <> ALL (foreign_kinds) THEN
                runnable := 1;
                EXIT;
            END IF;
            SELECT t.kind, t.unblocked_at INTO head, waits FROM task t
            WHERE t.state = 'waiting' AND t.blocked_on = 0 AND t.kind > head ORDER BY t.kind, t.rank, t.unblocked_at LIMIT 1;
        END LOOP;
        IF runnable = 0 THEN
            -- What is due and has no place in the queues yet.
            SELECT count(*) INTO runnable
            FROM (SELECT FROM task t WHERE t.state = 'waiting' AND t.blocked_on IS NULL AND t.not_before <= now() - patience LIMIT 1) d;
        END IF;
    END IF;
    RETURN ARRAY[online + since, housekeepers + since * housekeepers / greatest(online, 1), runnable];
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION app_beat IS
    'Prolongs the lease of a process, and answers how many of its type are online and how many of them keep house, as counted within the last second, or, where the counting itself takes longer, before that; one that has registered since the count adds what its registration did. Null: it was declared missing. The third number is 1 if tasks of other than these kinds wait for nothing but a worker, or any for their place in the queues, and have for as long as patience says (null: it does not look). An array, since three columns take a seventh more of the time.';

-- +goose Down
DROP FUNCTION app_beat, app_register, app_count, task_turn, task_abandoned_finish, task_cancel, task_finished, task_finish, task_finish_sole, task_queues_leave, task_queues_lock_briefly, task_queues_lock, task_leaving,
    domain_shares_drop, task_enqueue_due, task_reserves, task_dispatch, task_kinds_briefly, task_kinds, reservation_place, domain_shares_write,
    resource_lock_all_briefly, resource_lock_all, resource_lock_buckets, resources_contended, task_reserved, domain_own, resource_is_domain, resource_bucket;

