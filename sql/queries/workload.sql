-- name: WorkloadUnfinished :many
-- The next tasks of a type, by id, that wait or run: what a workload has left behind.
SELECT t.id FROM task t JOIN task_kind k ON k.id = t.kind
WHERE k.name = @name::text AND t.finished_at IS NULL AND t.id > @after::uuid
ORDER BY t.id LIMIT @most::int;

-- name: WorkloadPurge :one
-- Looks at the next tasks by age, up to most of them, and deletes those of a type that are final. Answers
-- where to go on: the last id it looked at, null at the end. The tasks are nobody's children and report
-- nothing. Locks what it deletes in the order of ids, as TaskPurge does, which may be deleting the same.
WITH page AS (
    SELECT t.id, t.kind, t.finished_at FROM task t
    WHERE t.id > @after::uuid ORDER BY t.id LIMIT @most::int
), final AS MATERIALIZED (
    SELECT t.id FROM task t WHERE t.id = ANY (ARRAY(
        SELECT p.id FROM page p JOIN task_kind k ON k.id = p.kind WHERE p.finished_at IS NOT NULL AND k.name = @name::text
    ))
    ORDER BY t.id FOR UPDATE
), gone AS (
    DELETE FROM task t WHERE t.id = ANY (ARRAY(SELECT f.id FROM final f))
    RETURNING 1
)
SELECT (SELECT count(*) FROM gone)::int AS deleted, (SELECT p.id FROM page p ORDER BY p.id DESC LIMIT 1)::uuid AS last;
