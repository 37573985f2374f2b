-- name: APISecretGet :one
-- The key that signs links.
SELECT secret FROM api_secret;
