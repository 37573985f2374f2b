-- +goose Up

-- Who may use the REST API, and what for.
CREATE TABLE auth_user (
    id           int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    username     text        NOT NULL,
    password     text        NOT NULL,
    first_name   text        NOT NULL DEFAULT '',
    last_name    text        NOT NULL DEFAULT '',
    email        text        NOT NULL DEFAULT '',
    is_staff     boolean     NOT NULL DEFAULT false,
    is_active    boolean     NOT NULL DEFAULT true,
    is_superuser boolean     NOT NULL DEFAULT false,
    date_joined  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT auth_user_username_unique UNIQUE (username),
    CONSTRAINT auth_user_username_not_empty CHECK (username <> '')
);

COMMENT ON TABLE auth_user IS 'Who may use the REST API.';
COMMENT ON COLUMN auth_user.password IS 'A bcrypt hash; ! and what is random: nobody can log in.';
COMMENT ON COLUMN auth_user.is_superuser IS 'May do everything that can be done.';

CREATE TABLE user_role (
    id         uuid PRIMARY KEY,
    user_id    int         NOT NULL,
    role       text        NOT NULL,
    model      text        NOT NULL DEFAULT '',
    object     text        NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT user_role_user_fkey FOREIGN KEY (user_id) REFERENCES auth_user ON DELETE CASCADE,
    CONSTRAINT user_role_unique UNIQUE (user_id, role, model, object),
    CONSTRAINT user_role_of_one_object CHECK ((model = '') = (object = ''))
);

-- For the creators of objects, and when an object is deleted.
CREATE INDEX user_role_object ON user_role (model, object);

-- For what somebody may do with everything, which is asked before what they may do with one object.
CREATE INDEX user_role_on_all ON user_role (user_id, role) WHERE model = '';

-- For lists of the tasks that somebody may see, in their order.
CREATE INDEX user_role_task ON user_role (user_id, (object::uuid)) WHERE model = 'core.task';

COMMENT ON TABLE user_role IS 'What users may do: a role on one object, or on all.';
COMMENT ON COLUMN user_role.role IS 'One of the roles that the program knows, such as core.task_owner.';
COMMENT ON COLUMN user_role.model IS 'The model of the object, such as core.task; empty: the role is for all objects of its permissions.';
COMMENT ON COLUMN user_role.object IS 'The key of the object, as its PRN ends. No foreign key: a trigger of its table deletes the roles, see roles_drop.';

-- Profiles of the runs of tasks, for whom they were asked for.
CREATE TABLE task_profile (
    task_id uuid  NOT NULL,
    name    text  NOT NULL,
    data    bytea NOT NULL,
    CONSTRAINT task_profile_pkey PRIMARY KEY (task_id, name),
    CONSTRAINT task_profile_task_fkey FOREIGN KEY (task_id) REFERENCES task ON DELETE CASCADE
);

COMMENT ON TABLE task_profile IS 'Profiles of the runs of tasks that were dispatched with the wish for them: each of the last attempt that made it.';
COMMENT ON COLUMN task_profile.name IS 'memory_profile, cpu_profile or heap_profile.';

CREATE TABLE api_secret (
    sole   boolean PRIMARY KEY DEFAULT true,
    secret bytea NOT NULL,
    CONSTRAINT api_secret_sole CHECK (sole)
);

COMMENT ON TABLE api_secret IS 'The key with which the processes of the REST API sign links that need no credentials.';

INSERT INTO api_secret (secret) VALUES (decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex'));

-- +goose StatementBegin
CREATE FUNCTION task_own(ids uuid[], parent uuid, owners int[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    -- Who is deleted at this moment leaves the children nothing; the others stay until they have it.
    PERFORM u.id FROM auth_user u WHERE parent IS NOT NULL AND u.id IN (
        SELECT r.user_id FROM user_role r
        WHERE r.model = 'core.task' AND r.object = parent::text AND r.role IN ('core.task_owner', 'core.task_user_dispatcher'))
    ORDER BY u.id FOR KEY SHARE;
    INSERT INTO user_role (id, user_id, role, model, object)
    SELECT gen_random_uuid(), o.user_id, o.role, 'core.task', n.id::text
    FROM unnest(ids, owners) n (id, owner) CROSS JOIN LATERAL (
        SELECT n.owner AS user_id, r.role FROM (VALUES ('core.task_owner'), ('core.task_user_dispatcher')) r (role) WHERE n.owner > 0
        UNION
        SELECT r.user_id, r.role FROM user_role r
        WHERE r.model = 'core.task' AND r.object = parent::text AND r.role IN ('core.task_owner', 'core.task_user_dispatcher')
    ) o
    WHERE NOT EXISTS (SELECT FROM task t WHERE t.id = n.id)
    ON CONFLICT DO NOTHING;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION task_own IS
    'Gives who is about to dispatch these tasks the roles on them, owner by owner, 0: nobody; and those who have them on the parent the same.';

-- +goose StatementBegin
CREATE FUNCTION roles_drop() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM user_role r WHERE r.model = TG_ARGV[0] AND r.object = OLD.id::text;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
COMMENT ON FUNCTION roles_drop IS 'Deletes the roles on an object that is gone, or has another id now. Its argument is the model; the table has a column id.';

CREATE TRIGGER roles_drop AFTER DELETE ON task FOR EACH ROW EXECUTE FUNCTION roles_drop('core.task');

CREATE VIEW task_told AS
SELECT t.id, t.state, k.name, k.versions, k.max_attempts, t.logging_cid, t.created_at, t.not_before, t.unblocked_at, t.started_at, t.finished_at,
    t.app_lock, t.attempt, t.blocked_on, t.priority, t.immediate, t.deferred, t.reserved_resources_record, t.parent_task, t.task_group,
    t.result, t.error
FROM task t JOIN task_kind k ON k.id = t.kind;

-- What lists of the REST API select from and order by.
CREATE VIEW api_task AS
SELECT t.id, t.state, k.name, t.logging_cid, t.created_at, t.unblocked_at, t.started_at, t.finished_at, t.parent_task, t.task_group,
    task_reserved(t.reserved_resources_record) AS reserved, k.versions, t.immediate, t.deferred, t.error::text AS error, t.result::text AS result
FROM task t JOIN task_kind k ON k.id = t.kind;

-- All but the completed ones, found by what indexes have no others. Each state is a branch of its own: those that nobody
-- asks for are not read.
CREATE VIEW api_task_state AS
SELECT 'waiting'::text AS state, t.id FROM task t WHERE t.state = 'waiting' AND t.blocked_on = 0
UNION ALL SELECT 'waiting', t.id FROM task t WHERE t.state = 'waiting' AND t.blocked_on IS NULL
UNION ALL SELECT 'waiting', t.id FROM task_reservation r JOIN task t ON t.id = r.task WHERE NOT r.granted AND t.state = 'waiting' AND t.blocked_on > 0
UNION ALL SELECT 'running', t.id FROM task t WHERE t.state = 'running' AND t.app_lock IS NOT NULL
UNION ALL SELECT 'running', t.id FROM task t WHERE t.state = 'running' AND t.app_lock IS NULL
UNION ALL SELECT 'canceling', t.id FROM task t WHERE t.state = 'canceling'
UNION ALL SELECT 'failed', t.id FROM task t WHERE t.state = 'failed'
UNION ALL SELECT 'canceled', t.id FROM task t WHERE t.state = 'canceled'
UNION ALL SELECT 'skipped', t.id FROM task t WHERE t.state = 'skipped';

CREATE VIEW api_worker AS
SELECT a.id, a.name, a.app_type, a.versions, a.ttl, a.created_at, a.last_heartbeat, a.last_heartbeat + a.ttl >= now() AS online
FROM app_status a WHERE a.app_type = 'worker';

COMMENT ON VIEW task_told IS 'Tasks as clients are told of them: without the arguments, which may be long.';
COMMENT ON VIEW api_task IS 'Tasks as lists of the REST API select them.';
COMMENT ON VIEW api_task_state IS 'Tasks in other states than completed, some twice: by indexes that do not have the completed ones.';
COMMENT ON VIEW api_worker IS 'Workers as lists of the REST API select them.';

-- +goose Down
DROP VIEW api_worker, api_task_state, api_task, task_told;
DROP TRIGGER roles_drop ON task;
DROP FUNCTION roles_drop, task_own;
DROP TABLE api_secret, task_profile, user_role, auth_user;
