package dbtest

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
)

// An invariant holds in every migrated database whenever no transaction is open.
type invariant struct {
	name string // what holds, as a sentence
	sql  string // finds the rows for which it does not
}

// invariants are checked in each test's database when the test ends.
var invariants = []invariant{
	{
		name: "no migrator left its lock behind",
		sql:  `SELECT lock_id, locked_by FROM goose_lock WHERE locked`,
	},
	{
		name: "a process has a name and a lease",
		sql:  `SELECT id, name, ttl FROM app_status WHERE name = '' OR ttl <= interval '0'`,
	},
	{
		name: "final tasks have an end, and no others",
		sql:  `SELECT id, state, finished_at FROM task WHERE (finished_at IS NOT NULL) <> (state IN ('skipped', 'completed', 'failed', 'canceled'))`,
	},
	{
		name: "only running and canceling tasks are held",
		sql:  `SELECT id, state, app_lock FROM task WHERE app_lock IS NOT NULL AND state NOT IN ('running', 'canceling')`,
	},
	{
		name: "running and canceling tasks are not blocked, and have a start",
		sql: `SELECT id, state, blocked_on, started_at FROM task
			WHERE state IN ('running', 'canceling') AND (blocked_on IS DISTINCT FROM 0 OR started_at IS NULL)`,
	},
	{
		name: "tasks were unblocked at some time if nothing blocks them, and no others",
		sql:  `SELECT id, state, blocked_on, unblocked_at FROM task WHERE (unblocked_at IS NOT NULL) <> coalesce(blocked_on = 0, false) OR blocked_on < 0`,
	},
	{
		name: "a task may run with its dispatcher or with a worker",
		sql:  `SELECT id FROM task WHERE NOT (immediate OR deferred)`,
	},
	{
		name: "rank puts immediate tasks first, then those of a higher priority",
		sql:  `SELECT id, rank, immediate, priority FROM task WHERE rank <> CASE WHEN immediate THEN -100000 ELSE 0 END - priority`,
	},
	{
		name: "the stripes are marked exactly while an exclusive reservation of a domain is queued",
		sql: `SELECT bucket, contended FROM resource_lock WHERE bucket < 0 AND contended <> EXISTS
			(SELECT FROM task_reservation r WHERE r.exclusive AND resource_is_domain(r.resource))`,
	},
	{
		name: "blocked_on counts the reservations that are not granted",
		sql: `SELECT t.id, t.state, t.blocked_on, r.pending FROM task t
			LEFT JOIN (SELECT r.task, count(*) AS pending FROM task_reservation r WHERE NOT r.granted GROUP BY r.task) r ON r.task = t.id
			WHERE t.finished_at IS NULL AND t.blocked_on IS DISTINCT FROM coalesce(r.pending, 0)
			  AND NOT (t.blocked_on IS NULL AND r.pending IS NULL)`,
	},
	{
		name: "a queued task that is not final stands in the queue of each of its resources, all others in none",
		sql: `WITH reserves AS (
				SELECT t.id, t.seq, t.finished_at IS NULL AND t.blocked_on IS NOT NULL AS queued,
					CASE WHEN starts_with(r, 'shared:') THEN substr(r, 8) ELSE r END AS resource, NOT starts_with(r, 'shared:') AS exclusive
				FROM task t, unnest(task_reserved(t.reserved_resources_record)) r)
			SELECT w.*, r.seq AS row FROM reserves w
			LEFT JOIN task_reservation r ON r.task = w.id AND r.resource = w.resource AND r.seq = w.seq AND r.exclusive = w.exclusive
			WHERE CASE WHEN NOT w.queued THEN r.seq IS NOT NULL
			           WHEN starts_with(w.resource, 'prn:core.domain:') AND NOT w.exclusive THEN
			               r.seq IS NULL AND EXISTS (SELECT FROM task_reservation x WHERE x.resource = w.resource AND x.exclusive)
			           ELSE r.seq IS NULL END`,
	},
	{
		name: "a reservation belongs to a task that is not final",
		sql: `SELECT r.* FROM task_reservation r LEFT JOIN task t ON t.id = r.task
			WHERE t.id IS NULL OR t.finished_at IS NOT NULL OR t.seq <> r.seq OR t.blocked_on IS NULL`,
	},
	{
		name: "granted is the longest compatible prefix of each queue",
		sql: `SELECT * FROM (
				SELECT r.*, CASE WHEN r.exclusive THEN row_number() OVER q = 1
				            ELSE NOT coalesce(bool_or(r.exclusive) OVER (q ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), false) END AS should
				FROM task_reservation r WINDOW q AS (PARTITION BY r.resource ORDER BY r.seq)) g
			WHERE g.granted <> g.should`,
	},
	{
		name: "a final task has no running progress report",
		sql: `SELECT p.task_id, p.code, t.state FROM progress_report p JOIN task t ON t.id = p.task_id
			WHERE t.finished_at IS NOT NULL AND p.state = 'running'`,
	},
}

// shown is how many offending rows of one invariant are told at most.
const shown = 5

// Broken answers which invariants do not hold, each with some of the rows that break it.
func Broken(ctx context.Context, q Querier) (map[string][]string, error) {
	broken := map[string][]string{}
	for _, inv := range invariants {
		// An error of the query itself shows when its rows are read.
		rows, _ := q.Query(ctx, fmt.Sprintf("SELECT row_to_json(broken)::text FROM (%s) AS broken LIMIT %d", inv.sql, shown))
		found, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return nil, fmt.Errorf("invariant %q: %w", inv.name, err)
		}
		if len(found) > 0 {
			broken[inv.name] = found
		}
	}
	return broken, nil
}

// A Querier is a pool, a connection or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// checkInvariants fails the test for each invariant that does not hold.
func checkInvariants(ctx context.Context, t testing.TB, q Querier) {
	t.Helper()
	broken, err := Broken(ctx, q)
	if err != nil {
		t.Error(err)
	}
	for name, rows := range broken {
		t.Errorf("invariant %q is broken by %v", name, rows)
	}
}
