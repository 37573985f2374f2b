package dbtest

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
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
				FROM task t, unnest(t.reserved_resources_record) r)
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

// shown is how many offending rows of one invariant are told.
const shown = 5

// checkInvariants fails the test for each invariant that does not hold.
func checkInvariants(ctx context.Context, t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	for _, inv := range invariants {
		// An error of the query itself shows when its rows are read.
		rows, _ := pool.Query(ctx, fmt.Sprintf("SELECT row_to_json(broken)::text FROM (%s) AS broken", inv.sql))
		broken, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Errorf("invariant %q: %v", inv.name, err)
			continue
		}
		if len(broken) > 0 {
			t.Errorf("invariant %q is broken by %d rows, among them %v", inv.name, len(broken), broken[:min(len(broken), shown)])
		}
	}
}
