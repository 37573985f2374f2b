package doctor

import (
	"context"
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/internal/resend"
)

func TestDeadRowsOfHotTablesAreTold(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	execute(t, d, "ALTER TABLE task_reservation SET (autovacuum_enabled = off)")
	execute(t, d, "INSERT INTO task_reservation SELECT 'r', n, gen_random_uuid(), true, true FROM generate_series(1, 20000) n; DELETE FROM task_reservation")
	if d.Services.Server.Major() >= 15 {
		// Sent in one session with the rest: statistics are flushed by the session that made them.
		execute(t, d, "INSERT INTO task_reservation VALUES ('r', 0, gen_random_uuid(), true, true); DELETE FROM task_reservation; SELECT pg_stat_force_next_flush()")
	} else {
		d.Direct.Reset() // a session that ends sends its statistics
	}
	until(t, d, "SELECT n_dead_tup >= 20000 FROM pg_stat_user_tables WHERE relname = 'task_reservation'")
	r := examine(t, d.Pool, nil)
	list := of(r, "dead_rows")
	if len(list) != 2 {
		t.Fatalf("%d findings: %+v", len(list), list)
	}
	wantFinding(t, list[0], Warning, "autovacuum is off for table task_reservation", "ALTER TABLE task_reservation RESET (autovacuum_enabled)")
	wantFinding(t, list[1], Warning, "task_reservation has 0 live and 2000", "VACUUM task_reservation")
	if !strings.Contains(list[1].Message, "autovacuum should start at 1000") || !strings.Contains(list[1].Message, "never vacuumed") {
		t.Errorf("the trigger and the last run are missing in %q", list[1].Message)
	}
}

// snapshotBy opens a transaction with a snapshot on a connection of its own.
func snapshotBy(t *testing.T, d *dbtest.DB) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), d.DirectURL+"&application_name=report")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	tx, err := conn.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "SELECT 1 FROM task"); err != nil {
		t.Fatal(err)
	}
}

func TestOldSnapshotsAreNamed(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	snapshotBy(t, d)
	wantFinding(t, only(t, examine(t, d.Pool, nil), "old_snapshots"), OK, " transactions old", "")
	execute(t, d, "INSERT INTO task_group VALUES (gen_random_uuid(), '')")
	execute(t, d, "INSERT INTO task_group VALUES (gen_random_uuid(), '')")
	r := examine(t, d.Pool, func(d *Doctor) { d.limits.transaction = time.Nanosecond })
	f := only(t, r, "old_snapshots")
	wantFinding(t, f, Warning, "(role pith, application report, idle in transaction) keeps dead rows", "pg_terminate_backend(")
	r = examine(t, d.Pool, func(d *Doctor) { d.limits.transactions = 2 })
	wantFinding(t, only(t, r, "old_snapshots"), Warning, "idle in transaction) keeps dead rows", "")
	for range listed {
		snapshotBy(t, d)
	}
	list := of(examine(t, d.Pool, func(d *Doctor) { d.limits.transaction = time.Nanosecond }), "old_snapshots")
	if len(list) != listed+1 {
		t.Fatalf("%d findings", len(list))
	}
	wantFinding(t, list[listed], Warning, "1 more keep dead rows", "")
}

// standby does of a standby what keeps back dead rows: it takes the log and says what it still needs.
// With a slot's name, through that slot.
func standby(t *testing.T, d *dbtest.DB, slot string) {
	t.Helper()
	var at string
	var xid uint64
	if err := d.Direct.QueryRow(t.Context(), "SELECT pg_current_wal_flush_lsn()::text, pg_current_xact_id()::text::bigint").Scan(&at, &xid); err != nil {
		t.Fatal(err)
	}
	conn, err := pgconn.Connect(t.Context(), d.DirectURL+"&replication=true&application_name=copy")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	command := "START_REPLICATION PHYSICAL " + at
	if slot != "" {
		command = "START_REPLICATION SLOT " + slot + " PHYSICAL " + at
	}
	conn.Frontend().SendQuery(&pgproto3.Query{String: command})
	// The time is not read; then two xids, each with its epoch: of the rows, and of the catalog.
	feedback := binary.BigEndian.AppendUint64([]byte{'h'}, 0)
	feedback = binary.BigEndian.AppendUint32(feedback, uint32(xid))
	feedback = binary.BigEndian.AppendUint32(feedback, uint32(xid>>32))
	feedback = binary.BigEndian.AppendUint64(feedback, 0)
	conn.Frontend().Send(&pgproto3.CopyData{Data: feedback})
	if err := conn.Frontend().Flush(); err != nil {
		t.Fatal(err)
	}
}

// until looks again and again for what a server does by and by.
func until(t *testing.T, d *dbtest.DB, question string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for yes := false; !yes; {
		if err := d.Direct.QueryRow(ctx, question).Scan(&yes); err != nil {
			t.Fatalf("%s: %v", question, err)
		}
		if !yes && resend.Sleep(ctx, 20*time.Millisecond) != nil {
			t.Fatalf("never: %s", question)
		}
	}
}

func TestAllThatKeepBackDeadRowsAreNamed(t *testing.T) {
	t.Parallel()
	d := dbtest.Private(t, map[string]string{"max_prepared_transactions": "2"}).New(t)
	for _, tt := range []struct {
		name            string
		do, undo        string
		standby         bool
		there           string
		message, remedy string
	}{
		{
			"prepared transaction", "BEGIN; INSERT INTO task_group VALUES (gen_random_uuid(), 'mine'); PREPARE TRANSACTION 'it''s mine'", "ROLLBACK PREPARED 'it''s mine'",
			false, "SELECT true", "prepared transaction it's mine (prepared) keeps dead rows", "ROLLBACK PREPARED 'it''s mine'",
		},
		{
			"standby", "SELECT", "SELECT pg_terminate_backend(pid) FROM pg_stat_replication",
			true, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'walsender' AND backend_xmin IS NOT NULL)", "(role pith, application copy, active) keeps dead rows", "hot_standby_feedback",
		},
		{
			"slot", "SELECT pg_create_physical_replication_slot('slot')", "SELECT pg_terminate_backend(pid) FROM pg_stat_replication",
			true, "SELECT xmin IS NOT NULL FROM pg_replication_slots", "replication slot slot (active) keeps dead rows from being removed, since", "pg_drop_replication_slot('slot')",
		},
		{
			"slot without a standby", "SELECT", "SELECT pg_drop_replication_slot('slot')",
			false, "SELECT NOT active FROM pg_replication_slots", "replication slot slot (inactive) keeps dead rows from being removed, since", "pg_drop_replication_slot('slot')",
		},
	} {
		execute(t, d, tt.do)
		if tt.standby {
			slot := ""
			if tt.name == "slot" {
				slot = "slot"
			}
			standby(t, d, slot)
		}
		until(t, d, tt.there)
		for range 3 {
			execute(t, d, "INSERT INTO task_group VALUES (gen_random_uuid(), '')")
		}
		f := only(t, examine(t, d.Pool, func(d *Doctor) { d.limits.transactions = 3 }), "old_snapshots")
		wantFinding(t, f, Warning, tt.message, tt.remedy)
		execute(t, d, tt.undo)
		until(t, d, "SELECT count(*) = 0 FROM pg_stat_replication")
	}
	wantFinding(t, only(t, examine(t, d.Pool, func(d *Doctor) { d.limits.transactions = 3 }), "old_snapshots"), OK, "", "")
}

func TestRoleThatSeesLessSaysSo(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	role := newRole(t, d)
	snapshotBy(t, d)
	r := examine(t, as(t, d, role), func(d *Doctor) { d.limits.transaction = time.Nanosecond })
	wantFinding(t, only(t, r, "visibility"), Note, "their states, and since when their transactions run, are hidden", "GRANT pg_read_all_stats TO "+role)
	wantFinding(t, only(t, r, "old_snapshots"), OK, "", "")
	// The connections of the owner, the one that holds the snapshot, and its own; those of
	// what has just been closed are counted until the server has ended them.
	counts := as(t, d, role)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		mine, err := db.New().DoctorConnections(ctx, counts, db.DoctorConnectionsParams{Pooled: true})
		if err != nil {
			t.Fatal(err)
		}
		owners := d.Direct.Stat().TotalConns()
		if mine.UsedDatabase == 2+owners {
			break
		}
		if resend.Sleep(ctx, 20*time.Millisecond) != nil {
			t.Fatalf("%+v, with %d connections of the owner", mine, owners)
		}
	}
	// Another role's age in transactions is seen by all.
	r = examine(t, as(t, d, role), func(d *Doctor) { d.limits.transactions = 0 })
	wantFinding(t, only(t, r, "old_snapshots"), Warning, "keeps dead rows from being removed", "")
	execute(t, d, "GRANT pg_read_all_stats TO "+role)
	r = examine(t, as(t, d, role), func(d *Doctor) { d.limits.transaction = time.Nanosecond })
	wantFinding(t, only(t, r, "visibility"), OK, role, "")
	wantFinding(t, only(t, r, "old_snapshots"), Warning, "idle in transaction", "")
}

func TestHoldersAreDescribedByTheirKind(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		row          db.DoctorHoldersRow
		text, remedy string
	}{
		{db.DoctorHoldersRow{Kind: "session", Name: "17", Role: "r", Application: "a", State: "active"}, "session 17 (role r, application a, active)", "end it there, or SELECT pg_terminate_backend(17); idle_in_transaction_session_timeout bounds those that forget"},
		{db.DoctorHoldersRow{Kind: "session", Name: "17"}, "session 17", "end it there, or SELECT pg_terminate_backend(17); idle_in_transaction_session_timeout bounds those that forget"},
		{db.DoctorHoldersRow{Kind: "standby", Name: "17", Application: "walreceiver"}, "standby 17 (application walreceiver)", "a query on the standby holds it: bound it there, or turn hot_standby_feedback off"},
		{db.DoctorHoldersRow{Kind: "replication slot", Name: "s'", State: "inactive"}, "replication slot s' (inactive)", "bring its consumer back, or SELECT pg_drop_replication_slot('s''')"},
		{db.DoctorHoldersRow{Kind: "prepared transaction", Name: "p", State: "prepared"}, "prepared transaction p (prepared)", "COMMIT PREPARED 'p' or ROLLBACK PREPARED 'p'"},
	} {
		if got := holderText(tt.row); got != tt.text {
			t.Errorf("text %q, not %q", got, tt.text)
		}
		if got := holderRemedy(tt.row); got != tt.remedy {
			t.Errorf("remedy %q, not %q", got, tt.remedy)
		}
	}
}
