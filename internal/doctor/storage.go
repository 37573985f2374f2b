package doctor

import (
	"context"
	"fmt"
	"strings"

	"github.com/pithworks/pith/db"
)

// hot are the tables whose rows change all the time.
var hot = []string{"app_status", "resource_lock", "task", "task_reservation"}

func (x *examination) lookAtDeadRows(ctx context.Context, f *findings) error {
	rows, err := x.q.DoctorTables(ctx, x.pool, hot)
	if err != nil {
		return err
	}
	for _, name := range []string{"autovacuum", "track_counts"} {
		if x.settings[name].Setting == "off" {
			f.add(Warning, fmt.Sprintf("set %s = on in the server's configuration", name), "%s is off%s: nobody removes dead rows, and the queues get slower", name, x.from(name))
		}
	}
	var parts []string
	for _, t := range rows {
		text := fmt.Sprintf("%s has %d live and %d dead rows in %s, indexes %s, %s",
			t.Name, t.Live, t.Dead, size(t.HeapBytes), size(t.IndexBytes), vacuumed(t))
		if !t.Autovacuum {
			f.add(Warning, fmt.Sprintf("ALTER TABLE %s RESET (autovacuum_enabled)", t.Name), "autovacuum is off for table %s: nobody removes dead rows", t.Name)
		}
		if t.Dead >= x.limits.dead && float64(t.Dead) >= x.limits.ratio*t.TriggerAt {
			f.add(Warning, fmt.Sprintf("VACUUM %s; then see what keeps autovacuum from it: old snapshots (below), autovacuum_max_workers, autovacuum_vacuum_cost_limit", t.Name),
				"%s: autovacuum should start at %.0f", text, t.TriggerAt)
		}
		parts = append(parts, fmt.Sprintf("%s %d/%d", t.Name, t.Live, t.Dead))
	}
	f.ok("live/dead rows: %s", strings.Join(parts, ", "))
	return nil
}

func vacuumed(t db.DoctorTablesRow) string {
	if t.VacuumedSeconds < 0 {
		return "never vacuumed"
	}
	return fmt.Sprintf("vacuumed %s ago", round(seconds(t.VacuumedSeconds)))
}

// size is a size for people.
func size(n int64) string {
	const step = 1024
	switch {
	case n >= 10*step*step*step:
		return fmt.Sprintf("%d GB", n/step/step/step)
	case n >= 10*step*step:
		return fmt.Sprintf("%d MB", n/step/step)
	}
	return fmt.Sprintf("%d kB", n/step)
}

// listed is how many of those that hold back dead rows are named.
const listed = 5

func (x *examination) lookAtOldSnapshots(ctx context.Context, f *findings) error {
	rows, err := x.q.DoctorHolders(ctx, x.pool)
	if err != nil {
		return err
	}
	var old []db.DoctorHoldersRow
	for _, h := range rows {
		if seconds(h.Seconds) >= x.limits.transaction || h.Transactions >= x.limits.transactions {
			old = append(old, h)
		}
	}
	for _, h := range old[:min(len(old), listed)] {
		f.add(Warning, holderRemedy(h), "%s keeps dead rows from being removed, since %d transactions%s", holderText(h), h.Transactions, since(h.Seconds))
	}
	if more := len(old) - listed; more > 0 {
		f.add(Warning, "", "%d more keep dead rows from being removed", more)
	}
	if len(rows) == 0 {
		f.ok("nobody holds a snapshot")
	} else {
		f.ok("the oldest of %d is %d transactions old", len(rows), rows[0].Transactions)
	}
	return nil
}

func since(s float64) string {
	if s < 0 {
		return ""
	}
	return ", for " + round(seconds(s)).String()
}

func holderText(h db.DoctorHoldersRow) string {
	switch h.Kind {
	case "session", "standby":
		var about []string
		for _, a := range []struct{ name, value string }{{"role ", h.Role}, {"application ", h.Application}, {"", h.State}} {
			if a.value != "" {
				about = append(about, a.name+a.value)
			}
		}
		text := fmt.Sprintf("%s %s", h.Kind, h.Name)
		if len(about) > 0 {
			text += " (" + strings.Join(about, ", ") + ")"
		}
		return text
	}
	return fmt.Sprintf("%s %s (%s)", h.Kind, h.Name, h.State)
}

func holderRemedy(h db.DoctorHoldersRow) string {
	switch h.Kind {
	case "standby":
		return "a query on the standby holds it: bound it there, or turn hot_standby_feedback off"
	case "replication slot":
		return fmt.Sprintf("bring its consumer back, or SELECT pg_drop_replication_slot(%s)", literal(h.Name))
	case "prepared transaction":
		return fmt.Sprintf("COMMIT PREPARED %s or ROLLBACK PREPARED %[1]s", literal(h.Name))
	}
	return fmt.Sprintf("end it there, or SELECT pg_terminate_backend(%s); idle_in_transaction_session_timeout bounds those that forget", h.Name)
}

// literal quotes a text as SQL.
func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
