-- name: UserRoleAssign :execrows
-- Gives users a role on an object, or on all: every one of them, or nobody, for the unique constraint fails the statement
-- where one has it. The ids are the caller's and new: sent again, the statement finds them there and changes nothing. Rows
-- come in the order of the users, so that two such statements wait for each other in one order. A task is locked, so that it
-- is not deleted before it has the roles. 0 rows: an earlier send has given them, or there is no such task.
INSERT INTO user_role (id, user_id, role, model, object)
SELECT n.id, n.user_id, @role::text, @model::text, @object::text
FROM (SELECT unnest(@ids::uuid[]) AS id, unnest(@user_ids::int[]) AS user_id) n
WHERE NOT EXISTS (SELECT FROM user_role r WHERE r.id = n.id)
  AND (@model::text <> 'core.task' OR EXISTS (
      SELECT FROM task t WHERE t.id = CASE @model::text WHEN 'core.task' THEN (@object::text)::uuid END FOR KEY SHARE))
ORDER BY n.user_id;

-- name: UserRoleHolders :many
-- Those of these users who have a role on an object, or on all.
SELECT id, user_id FROM user_role
WHERE user_id = ANY (@user_ids::int[]) AND role = @role::text AND model = @model::text AND object = @object::text;

-- name: UserRoleRemove :execrows
-- Takes roles from users. 0 rows: somebody was faster, or an earlier send.
DELETE FROM user_role WHERE id = ANY (@ids::uuid[]);

-- name: UserRoleRead :many
-- Roles of a user.
SELECT * FROM user_role WHERE user_id = @user_id::int AND id = ANY (@ids::uuid[]);

-- name: UserRoleUsers :many
-- Whose these roles are.
SELECT id, user_id FROM user_role WHERE id = ANY (@ids::uuid[]);

-- name: UserRoleOfObjects :many
-- Who has which role on these objects, or on all.
SELECT r.user_id, r.role, r.object, u.username FROM user_role r JOIN auth_user u ON u.id = r.user_id
WHERE r.model = @model::text AND r.object = ANY (@objects::text[])
ORDER BY r.object, r.role, u.username;

-- name: UserRoleHeld :many
-- The roles that a user has on an object or on all objects.
SELECT r.role FROM user_role r WHERE r.user_id = @user_id::int AND r.model = ''
UNION
SELECT r.role FROM user_role r WHERE r.user_id = @user_id::int AND r.model = @model::text AND r.object = @object::text;

-- name: UserRoleTaskCount :one
-- On how many tasks a user has one of these roles: those with the first one, those with the second one and not the first, and so
-- on. Roles on tasks are deleted with them, so it reads none, and of the first role the index alone.
SELECT coalesce(sum(c.tasks), 0)::bigint AS tasks FROM unnest(@roles::text[]) WITH ORDINALITY x (role, place) CROSS JOIN LATERAL (
    SELECT count(*) AS tasks FROM user_role r
    WHERE r.user_id = @user_id::int AND r.role = x.role AND r.model = 'core.task'
      AND (x.place = 1 OR (SELECT count(*) FROM user_role e WHERE e.user_id = @user_id::int AND e.model = 'core.task'
          AND e.role = ANY ((@roles::text[])[:x.place - 1]) AND e.object = r.object) = 0)
) c;

-- name: UserRoleHeldOn :many
-- Those of these objects on which a user has one of these roles. Counted, not EXISTS, which makes the planner read the table
-- in the hope of a match, or hash all of the user's roles.
SELECT o.object::text FROM unnest(@objects::text[]) o (object)
WHERE (SELECT count(*) FROM user_role r WHERE r.user_id = @user_id::int AND r.role = ANY (@roles::text[]) AND r.model = '') > 0
   OR (SELECT count(*) FROM user_role r WHERE r.user_id = @user_id::int AND r.role = ANY (@roles::text[])
      AND r.model = @model::text AND r.object = o.object) > 0;

-- name: UserRoleDrop :execrows
-- Takes all roles on an object that never came to be. Those on one that is deleted are deleted by a trigger. 0 rows: there were
-- none, or an earlier send has taken them.
DELETE FROM user_role WHERE model = @model::text AND object = @object::text;
