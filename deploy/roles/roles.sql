-- The groups of roles with the least privileges, and what they may do: README.md beside this file tells how to
-- use them, and why they may do what they may.
--
--     psql -X -v ON_ERROR_STOP=1 -f roles.sql "$DIRECT_DATABASE_URL"
--
-- To be run by the owner of Pith's tables, not through the pooler, and again after each `pith migrate up`. It is
-- one statement: all of it holds, or nothing. Run twice, it changes nothing the second time; what somebody else has
-- granted to the groups on Pith's tables and functions it takes away.
--
-- The groups have other names with
--
--     PGOPTIONS='-c pith.reader=NAME -c pith.dispatcher=NAME -c pith.worker=NAME -c pith.accounts=NAME'
--
-- What other roles may do with the tables is not touched. But nobody else may call the functions any more: grant a
-- role that has worked with all privileges one of the groups first, and revoke its own afterwards.
DO $roles$
DECLARE
    reader     text := coalesce(nullif(current_setting('pith.reader', true), ''), 'pith_reader');
    dispatcher text := coalesce(nullif(current_setting('pith.dispatcher', true), ''), 'pith_dispatcher');
    worker     text := coalesce(nullif(current_setting('pith.worker', true), ''), 'pith_worker');
    account    text := coalesce(nullif(current_setting('pith.accounts', true), ''), 'pith_accounts');
    groups     text[] := ARRAY[reader, dispatcher, worker, account];
    home       text; -- Pith's schema
    space      oid;  -- the same
    owner      oid;  -- of its tables
    g          text;
    r          record;
BEGIN
    SELECT n.nspname, n.oid, c.relowner INTO home, space, owner
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass('task');
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no table task in %', current_setting('search_path')
            USING HINT = 'Run `pith migrate up` first; if that is done, name its schema in search_path.';
    END IF;
    IF NOT pg_has_role(owner, 'USAGE') THEN
        RAISE EXCEPTION 'role % does not own Pith''s tables', current_user USING HINT = format('Run this as %s.', owner::regrole);
    END IF;
    -- The first run takes table task for itself for a moment. Everybody waits behind one who waits for that, so this
    -- gives up soon, and can be run again.
    SET LOCAL lock_timeout = '5s';
    -- One at a time.
    EXECUTE format('LOCK TABLE %I.goose_db_version IN SHARE UPDATE EXCLUSIVE MODE', home);

    -- The groups. Nobody logs in as one.
    FOREACH g IN ARRAY groups LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = g) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', g);
            EXCEPTION
                WHEN duplicate_object OR unique_violation THEN
                    NULL; -- made for another database just now
                WHEN insufficient_privilege THEN
                    RAISE EXCEPTION 'role % is not there, and % may not make it', g, current_user
                        USING HINT = format('An administrator makes it once: CREATE ROLE %I NOLOGIN', g);
            END;
        END IF;
    END LOOP;

    -- The functions below run as the owner, and find what they use in this schema. Whoever may create something
    -- there, such as a function that fits a call better than PostgreSQL's own, would be run as the owner, too.
    IF has_schema_privilege('public', space, 'CREATE') AND has_schema_privilege(space, 'CREATE WITH GRANT OPTION') THEN
        EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', home);
    END IF;
    IF has_schema_privilege('public', space, 'CREATE') THEN
        RAISE EXCEPTION 'everybody may create objects in schema %', home
            USING HINT = format('The owner of the schema, or an administrator: REVOKE CREATE ON SCHEMA %I FROM PUBLIC', home);
    END IF;
    FOR r IN SELECT a.grantee::regrole AS role FROM pg_catalog.pg_namespace n, aclexplode(n.nspacl) a
             WHERE n.oid = space AND a.privilege_type = 'CREATE' AND a.grantee NOT IN (n.nspowner, owner)
    LOOP
        RAISE WARNING 'role % may create objects in schema %, and so do all that the owner of Pith''s tables may', r.role, home;
    END LOOP;

    -- A clean slate.
    FOR r IN SELECT c.oid::regclass AS name FROM pg_catalog.pg_class c
             WHERE c.relnamespace = space AND c.relowner = owner AND c.relkind IN ('r', 'p', 'v', 'm', 'S')
    LOOP
        FOREACH g IN ARRAY groups LOOP
            EXECUTE format('REVOKE ALL ON %s FROM %I', r.name, g);
        END LOOP;
    END LOOP;
    FOR r IN SELECT p.oid::regprocedure AS name FROM pg_catalog.pg_proc p
             WHERE p.pronamespace = space AND p.proowner = owner AND p.prokind = 'f'
               AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', r.name);
        FOREACH g IN ARRAY groups LOOP
            EXECUTE format('REVOKE ALL ON FUNCTION %s FROM %I', r.name, g);
        END LOOP;
    END LOOP;

    -- Connecting and finding the schema, as far as it is the runner's to give.
    FOREACH g IN ARRAY groups LOOP
        IF has_database_privilege(current_database(), 'CONNECT WITH GRANT OPTION') THEN
            EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), g);
        END IF;
        IF has_schema_privilege(space, 'USAGE WITH GRANT OPTION') THEN
            EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', home, g);
        END IF;
    END LOOP;

    -- What is called. as_owner: the function does what its caller may not. It finds its tables in this schema
    -- alone, temporary ones last; the other settings in its head stay.
    FOR r IN
        SELECT f.*, p.oid::regprocedure AS signature, p.proowner, count(*) OVER (PARTITION BY f.name) AS namesakes
        FROM (VALUES
            ('task_dispatch',         true,  ARRAY[dispatcher, worker]), -- workers: children and schedules
            ('task_cancel',           true,  ARRAY[dispatcher]),
            ('task_turn',             true,  ARRAY[worker]),
            ('task_turn_used',        true,  ARRAY[worker]),
            ('task_enqueue_due',      true,  ARRAY[worker]),
            ('task_abandoned_finish', true,  ARRAY[worker]),
            ('task_own',              true,  ARRAY[dispatcher, worker]),
            ('roles_drop',            true,  ARRAY[]::text[]), -- by triggers alone
            ('app_register',          true,  ARRAY[worker]),
            ('app_beat',              true,  ARRAY[worker]),
            -- Pure ones, in the text of what is read.
            ('task_reserved',         false, groups),
            ('domain_own',            false, groups)
        ) f (name, as_owner, callers)
        LEFT JOIN pg_catalog.pg_proc p ON p.proname = f.name AND p.pronamespace = space
    LOOP
        IF r.signature IS NULL OR r.namesakes > 1 OR r.proowner <> owner THEN
            RAISE EXCEPTION 'function % of schema % is missing, has a namesake, or has another owner than the tables', r.name, home
                USING HINT = 'Run `pith migrate up` and the roles.sql of the same release; `pith doctor` tells what differs.';
        END IF;
        IF r.as_owner THEN
            EXECUTE format('ALTER FUNCTION %s SECURITY DEFINER SET search_path = %I, pg_temp', r.signature, home);
        END IF;
        FOREACH g IN ARRAY r.callers LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', r.signature, g);
        END LOOP;
    END LOOP;

    -- What is read and written directly: what all may, and what the others may besides.
    FOR r IN
        SELECT t.name, u.who, u.privileges
        FROM (VALUES
            -- The sweep locks the rows that it deletes. To lock rows PostgreSQL asks for UPDATE of some column:
            -- here of one that is for people alone.
            ('app_status',       'SELECT', NULL, 'DELETE, UPDATE (name)', NULL),
            ('api_secret',       NULL, NULL, NULL, 'SELECT'),
            ('api_task',         'SELECT', NULL, NULL, NULL),
            ('api_task_state',   'SELECT', NULL, NULL, NULL),
            ('api_worker',       'SELECT', NULL, NULL, NULL),
            ('auth_user',        NULL, NULL, NULL, 'SELECT, INSERT, UPDATE, DELETE'),
            ('created_resource', 'SELECT', NULL, 'INSERT, UPDATE (resource)', NULL),
            ('goose_db_version', 'SELECT', NULL, NULL, NULL),
            ('progress_report',  'SELECT', NULL, 'INSERT, UPDATE (message, code, state, total, done, suffix)', NULL),
            ('resource_lock',    'SELECT', NULL, NULL, NULL), -- for `pith doctor`
            -- All columns: who reads tasks may see what they were given, too. Workers lock rows, while
            -- they write what a task tells, and purge; others, while they give roles on them. The policies below let
            -- them change none, and delete final ones.
            ('task',             'SELECT', NULL, 'DELETE, UPDATE (deferred)', 'UPDATE (deferred)'),
            ('task_group',       'SELECT', 'INSERT (id, description), UPDATE (all_tasks_dispatched)', 'UPDATE (all_tasks_dispatched)', NULL),
            ('task_kind',        'SELECT', NULL, NULL, NULL),
            ('task_profile',     'SELECT', NULL, 'INSERT, UPDATE (data)', NULL),
            ('task_reservation', 'SELECT', NULL, NULL, NULL),
            ('task_schedule',    'SELECT', 'DELETE, '
                'INSERT (id, name, task_name, args, exclusive, shared, priority, dispatch_interval, cron, next_dispatch), '
                'UPDATE (id, task_name, args, exclusive, shared, priority, dispatch_interval, cron, next_dispatch)', NULL, NULL),
            ('task_told',        'SELECT', NULL, NULL, NULL),
            ('task_usage',       'SELECT', NULL, NULL, NULL),
            -- Workers purge what somebody owns; the roles on that are deleted by a trigger.
            ('user_role',        NULL, NULL, 'SELECT', 'SELECT, INSERT, DELETE')
        ) t (name, everybody, dispatchers, workers, accounts)
        CROSS JOIN LATERAL (VALUES
            (reader, t.everybody), (dispatcher, t.everybody), (dispatcher, t.dispatchers), (worker, t.everybody), (worker, t.workers),
            (account, t.everybody), (account, t.accounts)
        ) u (who, privileges)
        WHERE u.privileges IS NOT NULL
    LOOP
        EXECUTE format('GRANT %s ON %I.%I TO %I', r.privileges, home, r.name, r.who);
    END LOOP;

    -- The rows of task are changed by the functions, which run as the owner, to whom policies don't apply. All
    -- others see each row and may lock it, if they have the privilege; change none; delete final ones.
    IF NOT (SELECT c.relrowsecurity FROM pg_catalog.pg_class c WHERE c.oid = to_regclass('task')) THEN
        EXECUTE format('ALTER TABLE %I.task ENABLE ROW LEVEL SECURITY', home);
    END IF;
    FOR r IN
        SELECT p.*, o.oid IS NOT NULL AS other
        FROM (VALUES
            ('task_read',  'SELECT', 'r', 'true', NULL),
            ('task_lock',  'UPDATE', 'w', 'true', 'false'),
            ('task_purge', 'DELETE', 'd', '(finished_at IS NOT NULL)', NULL)
        ) p (name, command, letter, condition, with_check)
        LEFT JOIN pg_catalog.pg_policy o ON o.polrelid = to_regclass('task') AND o.polname = p.name
        WHERE (o.polcmd::text = p.letter AND o.polpermissive AND o.polroles = '{0}' AND pg_get_expr(o.polqual, o.polrelid) = p.condition
               AND pg_get_expr(o.polwithcheck, o.polrelid) IS NOT DISTINCT FROM p.with_check) IS NOT TRUE
    LOOP
        IF r.other THEN
            EXECUTE format('DROP POLICY %I ON %I.task', r.name, home);
        END IF;
        EXECUTE format('CREATE POLICY %I ON %I.task FOR %s USING (%s)', r.name, home, r.command, r.condition)
            || coalesce(' WITH CHECK (' || r.with_check || ')', '');
    END LOOP;
END
$roles$;
