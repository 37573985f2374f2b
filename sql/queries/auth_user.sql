-- name: UserGetByName :one
-- The user of a name, for who says to be that.
SELECT * FROM auth_user WHERE username = @username::text;

-- name: UserList :many
-- These users.
SELECT * FROM auth_user WHERE id = ANY (@ids::int[]);

-- name: UserCreate :one
-- No row: the name is taken. Sent again, the statement finds its own password, which no other user has: a hash whose salt
-- is new, or what is random and no hash.
WITH made AS (
    INSERT INTO auth_user (username, password, first_name, last_name, email, is_staff, is_active, is_superuser)
    VALUES (@username::text, @password::text, @first_name::text, @last_name::text, @email::text, @is_staff::bool, @is_active::bool, @is_superuser::bool)
    ON CONFLICT (username) DO NOTHING RETURNING id
)
SELECT m.id FROM made m
UNION ALL
SELECT u.id FROM auth_user u WHERE u.username = @username::text AND u.password = @password::text
LIMIT 1;

-- name: UserUpdate :execrows
-- Changes what is not null. 0 rows: there is no such user.
UPDATE auth_user SET username = coalesce(sqlc.narg(username)::text, username), password = coalesce(sqlc.narg(password)::text, password),
    first_name = coalesce(sqlc.narg(first_name)::text, first_name), last_name = coalesce(sqlc.narg(last_name)::text, last_name),
    email = coalesce(sqlc.narg(email)::text, email), is_staff = coalesce(sqlc.narg(is_staff)::bool, is_staff),
    is_active = coalesce(sqlc.narg(is_active)::bool, is_active)
WHERE id = @id::int;

-- name: UserSetPassword :execrows
-- By name. 0 rows: there is no such user.
UPDATE auth_user SET password = @password::text WHERE username = @username::text;

-- name: UserDelete :execrows
-- Deletes a user; the foreign key deletes all roles of theirs, however many.
DELETE FROM auth_user WHERE id = @id::int;

-- name: UserByNames :many
-- The ids of these users.
SELECT id, username FROM auth_user WHERE username = ANY (@usernames::text[]);
