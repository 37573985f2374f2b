-- name: APISecretGet :one
SELECT secret FROM api_secret;
