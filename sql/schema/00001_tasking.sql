-- +goose Up

-- The tables of the tasking system. docs/architecture.md shows the path of the data,
-- docs/states.md the transitions. The functions that change these rows are in the next
-- migration; nothing else writes them.

CREATE TYPE app_type AS ENUM ('api', 'content', 'worker');

CREATE TABLE app_status (
    id             uuid PRIMARY KEY,
    app_type       app_type    NOT NULL,
    name           text        NOT NULL,
    versions       jsonb       NOT NULL DEFAULT '{}',
    task_names     text[]      NOT NULL DEFAULT '{}',
    housekeeping   boolean     NOT NULL DEFAULT false,
    ttl            interval    NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    last_heartbeat timestamptz NOT NULL DEFAULT now(),
    ordinal        bigint GENERATED ALWAYS AS IDENTITY
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_threshold = 200);

COMMENT ON TABLE app_status IS 'One row per running process of any kind: whoever may hold a task. No CHECKs, as in task: two of them took a twelfth of the time of a beat.';
COMMENT ON COLUMN app_status.id IS 'Made anew at each registration; task.app_lock points here.';
COMMENT ON COLUMN app_status.name IS 'For people, such as 4711@host; not unique.';
COMMENT ON COLUMN app_status.versions IS 'Component label to version (PEP 440), such as {"core": "3.117.0"}.';
COMMENT ON COLUMN app_status.task_names IS 'The task types that a worker knows; empty for the other types.';
COMMENT ON COLUMN app_status.housekeeping IS 'Shares in the fleet''s duties: sweeping, queueing what is due, dispatching schedules.';
COMMENT ON COLUMN app_status.ttl IS 'Missing once last_heartbeat + ttl has passed on the database''s clock.';
COMMENT ON COLUMN app_status.ordinal IS 'Counts registrations of any type, so that one knows how many came after the last count of the fleet.';

CREATE TABLE app_fleet (
    app_type     app_type PRIMARY KEY,
    online       int         NOT NULL,
    housekeepers int         NOT NULL,
    registered   bigint      NOT NULL,
    counted_at   timestamptz NOT NULL
) WITH (fillfactor = 50);

COMMENT ON TABLE app_fleet IS 'How many processes of each type are online, so that a beat need not count them. A beat or a registration that finds the count older than a second counts anew, so nobody learns of one that is much older; no row: nobody has registered yet.';
COMMENT ON COLUMN app_fleet.housekeepers IS 'How many of them keep house.';
COMMENT ON COLUMN app_fleet.registered IS 'The last ordinal that the count has seen.';

CREATE TABLE task_kind (
    id           int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name         text     NOT NULL,
    versions     jsonb    NOT NULL,
    max_attempts smallint NOT NULL,
    backoff      interval NOT NULL,
    CONSTRAINT task_kind_unique UNIQUE (name, versions, max_attempts, backoff),
    CONSTRAINT task_kind_name_not_empty CHECK (name <> ''),
    CONSTRAINT task_kind_attempts_positive CHECK (max_attempts >= 1),
    CONSTRAINT task_kind_backoff_not_negative CHECK (backoff >= interval '0')
);

COMMENT ON TABLE task_kind IS 'What many tasks have in common: the type''s name, the versions it needs, how often it may be tried. One row per distinct combination, written at its first dispatch and never deleted. It keeps the rows of task narrow, and lets a worker decide once per kind, not once per task, whether it may run it.';
COMMENT ON COLUMN task_kind.versions IS 'Component label to least version (PEP 440) that a worker must have.';
COMMENT ON COLUMN task_kind.max_attempts IS '1: never retried.';
COMMENT ON COLUMN task_kind.backoff IS 'Wait before the second attempt; doubles with each further one, up to an hour.';

CREATE TABLE task_group (
    id                   uuid PRIMARY KEY,
    description          text        NOT NULL,
    all_tasks_dispatched boolean     NOT NULL DEFAULT false,
    created_at           timestamptz NOT NULL DEFAULT now()
);

CREATE TYPE task_state AS ENUM
    ('waiting', 'skipped', 'running', 'completed', 'failed', 'canceled', 'canceling');

CREATE TABLE task (
    id           uuid PRIMARY KEY,
    seq          bigint GENERATED ALWAYS AS IDENTITY,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    not_before   timestamptz,
    unblocked_at timestamptz,
    started_at   timestamptz,
    finished_at  timestamptz,
    app_lock     uuid,
    kind         int         NOT NULL,
    rank         int         NOT NULL DEFAULT 0,
    attempt      int         NOT NULL DEFAULT 0,
    state        task_state  NOT NULL,
    blocked_on   smallint,
    priority     smallint    NOT NULL DEFAULT 0,
    immediate    boolean     NOT NULL DEFAULT false,
    deferred     boolean     NOT NULL DEFAULT true,
    reserved_resources_record text[] NOT NULL,
    logging_cid  text        NOT NULL,
    parent_task  uuid,
    task_group   uuid,
    args         json        NOT NULL,
    result       json,
    error        json,
    CONSTRAINT task_app_lock_fkey FOREIGN KEY (app_lock) REFERENCES app_status ON DELETE SET NULL,
    CONSTRAINT task_parent_fkey FOREIGN KEY (parent_task) REFERENCES task ON DELETE SET NULL,
    CONSTRAINT task_group_fkey FOREIGN KEY (task_group) REFERENCES task_group
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

COMMENT ON TABLE task IS 'One row per dispatched task, from dispatch until it is purged. Its rows are checked by the functions that write them and by the tests: PostgreSQL reads a CHECK anew in each statement, and six of them took two thirds of the time of an insert.';
COMMENT ON COLUMN task.id IS 'UUIDv7 made by the dispatcher: sending a dispatch twice hits the primary key.';
COMMENT ON COLUMN task.seq IS 'The place in the queues of its resources. Drawn under their locks when the task enters the queues, so it is the dispatch order of any two tasks that share a resource.';
COMMENT ON COLUMN task.not_before IS 'Not queued before this time; null: queued at once.';
COMMENT ON COLUMN task.app_lock IS 'Who holds the task; only the holder may move it on.';
COMMENT ON COLUMN task.kind IS 'A row of task_kind. No foreign key: kinds are never deleted, dispatch takes the id from the row itself, and the check would cost each insert a lock.';
COMMENT ON COLUMN task.rank IS 'Lower is claimed first: immediate tasks, then by priority. A plain column: a generated one is read anew in each statement, like a CHECK.';
COMMENT ON COLUMN task.attempt IS 'Runs begun so far. With the id it is the fencing token of a run: it grows with each claim.';
COMMENT ON COLUMN task.blocked_on IS 'How many of its reservations are not granted; 0 means runnable, null that it has no place in any queue (not due yet).';
COMMENT ON COLUMN task.reserved_resources_record IS 'What the task reserves, exclusive ones bare, shared ones as shared:NAME. The share of the domain is not named: see task_reserved.';
COMMENT ON COLUMN task.args IS 'The arguments as JSON, or {"$encrypted": TOKEN}.';
COMMENT ON COLUMN task.error IS 'After a failed attempt that will be retried it tells of that attempt.';

-- What a claim may take, in its order, kind by kind. Tasks that wait for a resource are not in it,
-- so a claim costs the same whatever the backlog. New entries come at a group's end, and a claim knows
-- where it has last found the beginning: what was claimed stands before it, dead, until a vacuum.
CREATE INDEX task_ready ON task (kind, rank, unblocked_at) WHERE state = 'waiting' AND blocked_on = 0;
-- Tasks without a place in the queues yet: not before, and retries.
CREATE INDEX task_due ON task (not_before) WHERE state = 'waiting' AND blocked_on IS NULL;
-- For the foreign key when an app is deleted, and for "what do I hold".
CREATE INDEX task_held ON task (app_lock) WHERE app_lock IS NOT NULL;
-- Two questions that are asked often, and whose answer is "none" nearly always: which of mine are to be
-- canceled, and what have apps left behind that went missing.
CREATE INDEX task_stray ON task (app_lock) WHERE state = 'canceling' OR (state = 'running' AND app_lock IS NULL);
CREATE INDEX task_parent ON task (parent_task) WHERE parent_task IS NOT NULL;
CREATE INDEX task_in_group ON task (task_group) WHERE task_group IS NOT NULL;

CREATE TABLE task_reservation (
    resource  text    NOT NULL,
    seq       bigint  NOT NULL,
    task      uuid    NOT NULL,
    exclusive boolean NOT NULL,
    granted   boolean NOT NULL,
    CONSTRAINT task_reservation_pkey PRIMARY KEY (resource, seq)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

COMMENT ON TABLE task_reservation IS 'The queue of each resource: one row per resource that an unfinished, queued task reserves. Granted rows stand before all others. The share of a domain has a row only while an exclusive reservation of that domain is queued.';
COMMENT ON COLUMN task_reservation.seq IS 'The task''s seq.';
COMMENT ON COLUMN task_reservation.task IS 'The task. No foreign key: its check would lock each task row once more; rows are written and deleted with the task''s own transitions only.';

CREATE TABLE resource_lock (
    bucket    int PRIMARY KEY,
    contended boolean NOT NULL DEFAULT false
) WITH (fillfactor = 50);

COMMENT ON TABLE resource_lock IS 'A fixed set of rows to lock. A resource hashes to a bucket of 0 to 4095; its queue changes only under that row''s lock. The buckets -64 to -1 are the stripes of the domains: who shares a domain locks one of them, who reserves it exclusively all.';

COMMENT ON COLUMN resource_lock.contended IS 'In the stripes alike: an exclusive reservation of a domain is queued, so that shares of domains have rows, too.';

INSERT INTO resource_lock SELECT generate_series(-64, 4095);

CREATE TABLE progress_report (
    task_id uuid       NOT NULL,
    ordinal int        NOT NULL,
    message text       NOT NULL,
    code    text       NOT NULL,
    state   task_state NOT NULL,
    total   bigint,
    done    bigint     NOT NULL,
    suffix  text,
    CONSTRAINT progress_report_pkey PRIMARY KEY (task_id, ordinal),
    CONSTRAINT progress_report_task_fkey FOREIGN KEY (task_id) REFERENCES task ON DELETE CASCADE
) WITH (fillfactor = 70);

-- For the end of a task: empty nearly always.
CREATE INDEX progress_report_running ON progress_report (task_id) WHERE state = 'running';

COMMENT ON COLUMN progress_report.ordinal IS 'Counts a task''s reports from 0, so that saving one twice is one row.';

CREATE TABLE created_resource (
    task_id  uuid NOT NULL,
    ordinal  int  NOT NULL,
    resource text NOT NULL,
    CONSTRAINT created_resource_pkey PRIMARY KEY (task_id, ordinal),
    CONSTRAINT created_resource_task_fkey FOREIGN KEY (task_id) REFERENCES task ON DELETE CASCADE
);

COMMENT ON COLUMN created_resource.resource IS 'The PRN of what the task created.';

CREATE TABLE task_schedule (
    id                uuid PRIMARY KEY,
    name              text        NOT NULL,
    task_name         text        NOT NULL,
    args              json        NOT NULL,
    exclusive         text[]      NOT NULL DEFAULT '{}',
    shared            text[]      NOT NULL DEFAULT '{}',
    priority          smallint    NOT NULL DEFAULT 0,
    dispatch_interval interval,
    cron              text,
    next_dispatch     timestamptz,
    last_task         uuid,
    created_at        timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT task_schedule_name_unique UNIQUE (name),
    CONSTRAINT task_schedule_one_rhythm CHECK (dispatch_interval IS NULL OR cron IS NULL),
    CONSTRAINT task_schedule_interval_positive CHECK (dispatch_interval > interval '0'),
    CONSTRAINT task_schedule_last_task_fkey FOREIGN KEY (last_task) REFERENCES task ON DELETE SET NULL
);

COMMENT ON TABLE task_schedule IS 'What is dispatched by the clock. Neither interval nor cron: once.';
COMMENT ON COLUMN task_schedule.cron IS 'A cron expression of five fields, in UTC.';
COMMENT ON COLUMN task_schedule.next_dispatch IS 'Null: never again.';

CREATE INDEX task_schedule_due ON task_schedule (next_dispatch) WHERE next_dispatch IS NOT NULL;
CREATE INDEX task_schedule_last_task ON task_schedule (last_task) WHERE last_task IS NOT NULL;

-- +goose Down
DROP TABLE task_schedule, created_resource, progress_report, resource_lock, task_reservation, task,
    task_group, task_kind, app_fleet, app_status;
DROP TYPE task_state;
DROP TYPE app_type;
