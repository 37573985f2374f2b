-- name: WorkloadUnfinished :many
-- The next tasks of a type, by id, that wait or run: what a workload has left behind.
SELECT t.id FROM task t JOIN task_kind k ON k.id = t.kind
WHERE k.name = ANY (@names::text[]) AND t.finished_at IS NULL AND t.id > @after::uuid
ORDER BY t.id LIMIT @most::int;

-- name: WorkloadPurge :one
-- Looks at the next tasks by age, up to most of them, and deletes those of these types that are final.
-- Answers where to go on: the last id it looked at, null at the end. The tasks are nobody's children and
-- report nothing.
WITH page AS (
    SELECT t.id, t.kind, t.finished_at FROM task t
    WHERE t.id > @after::uuid ORDER BY t.id LIMIT @most::int
), gone AS (
    DELETE FROM task t USING page p JOIN task_kind k ON k.id = p.kind
    WHERE t.id = p.id AND p.finished_at IS NOT NULL AND k.name = ANY (@names::text[])
    RETURNING 1
)
SELECT (SELECT count(*) FROM gone)::int AS deleted, (SELECT p.id FROM page p ORDER BY p.id DESC LIMIT 1)::uuid AS last;
