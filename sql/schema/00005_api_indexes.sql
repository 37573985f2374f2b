-- +goose NO TRANSACTION

-- +goose Up

-- For lists of what has failed or was canceled. Nearly all tasks are completed, and not in it.
DROP INDEX CONCURRENTLY IF EXISTS task_unsuccessful;
CREATE INDEX CONCURRENTLY task_unsuccessful ON task (state, id) WHERE state IN ('failed', 'canceled', 'skipped');

-- For "what created this?".
DROP INDEX CONCURRENTLY IF EXISTS created_resource_resource;
CREATE INDEX CONCURRENTLY created_resource_resource ON created_resource (resource);

-- +goose Down
DROP INDEX CONCURRENTLY IF EXISTS created_resource_resource;
DROP INDEX CONCURRENTLY IF EXISTS task_unsuccessful;
