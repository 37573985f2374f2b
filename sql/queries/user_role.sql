-- name: UserRoleAdd :exec
-- Gives users roles; what they have stays.
INSERT INTO user_role (id, user_id, role, model, object)
SELECT unnest(@ids::uuid[]), unnest(@user_ids::int[]), unnest(@roles::text[]), unnest(@models::text[]), unnest(@objects::text[])
ON CONFLICT (user_id, role, model, object) DO NOTHING;

-- name: UserRoleRemove :execrows
DELETE FROM user_role WHERE id = @id::uuid AND user_id = @user_id::int;

-- name: UserRoleTake :execrows
-- Takes a role on an object from users.
DELETE FROM user_role WHERE model = @model::text AND object = @object::text AND role = @role::text AND user_id = ANY (@user_ids::int[]);

-- name: UserRoleDrop :execrows
-- Deletes all roles on objects that are gone.
DELETE FROM user_role WHERE model = @model::text AND object = ANY (@objects::text[]);

-- name: UserRoleList :many
-- The roles of a user, or one of them, the latest first.
SELECT * FROM user_role WHERE user_id = @user_id::int AND (sqlc.narg(id)::uuid IS NULL OR id = sqlc.narg(id)::uuid)
ORDER BY created_at DESC, id LIMIT @most::int OFFSET @skip::int;

-- name: UserRoleCount :one
SELECT count(*)::int FROM user_role WHERE user_id = @user_id::int;

-- name: UserRoleOfObjects :many
-- Who has which role on these objects, or on all.
SELECT r.user_id, r.role, r.object, u.username FROM user_role r JOIN auth_user u ON u.id = r.user_id
WHERE r.model = @model::text AND r.object = ANY (@objects::text[])
ORDER BY r.object, r.role, u.username;

-- name: UserRoleHeld :many
-- The roles that a user has on an object or on all objects.
SELECT DISTINCT r.role FROM user_role r
WHERE r.user_id = @user_id::int AND (r.model = '' OR (r.model = @model::text AND r.object = @object::text));
