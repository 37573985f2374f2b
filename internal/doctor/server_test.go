package doctor

import (
	"testing"
	"time"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/dbtest"
)

func TestVersionsOutsideOfTheTestedOnesAreTold(t *testing.T) {
	t.Parallel()
	for major, want := range map[int]Severity{9: Error, 13: Error, 14: OK, 18: OK, 19: Note} {
		f := &findings{check: "version"}
		version(f, "x", major)
		if f.list[0].Severity != want {
			t.Errorf("%d is %s, not %s", major, f.list[0].Severity, want)
		}
	}
}

func TestSettingsThatHarmAreTold(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		setting, value  string
		check           string
		severity        Severity
		message, remedy string
	}{
		{"statement_timeout", "0", "timeouts", Warning, "statement_timeout is not set", "ALTER ROLE pith SET statement_timeout = '60s'"},
		{"statement_timeout", "2s", "timeouts", Warning, "statement_timeout is 2s (from the database)", "ALTER ROLE pith SET statement_timeout = '60s'"},
		{"idle_in_transaction_session_timeout", "0", "timeouts", Warning, "idle_in_transaction_session_timeout is not set", "ALTER ROLE pith SET"},
		{"lock_timeout", "1500ms", "timeouts", Note, "lock_timeout is 1.5s", "ALTER ROLE pith SET lock_timeout = '0'"},
		{"idle_session_timeout", "1h", "timeouts", Note, "idle_session_timeout is 1h0m0s", ""},
		{"synchronous_commit", "off", "durability", Warning, "synchronous_commit is off (from the database): a crash of the server forgets", "ALTER ROLE pith SET synchronous_commit = 'on'"},
		{"default_transaction_isolation", "repeatable read", "transactions", Error, "default_transaction_isolation is repeatable read", "'read committed'"},
		{"default_transaction_read_only", "on", "transactions", Error, "nothing can be written", "ALTER ROLE pith SET default_transaction_read_only = 'off'"},
		{"session_replication_role", "replica", "transactions", Error, "foreign keys don't act", "ALTER ROLE pith SET session_replication_role = 'origin'"},
		{"track_counts", "off", "dead_rows", Warning, "track_counts is off", "track_counts = on"},
	} {
		t.Run(tt.setting+" "+tt.value, func(t *testing.T) {
			t.Parallel()
			d := dbtest.New(t)
			execute(t, d, "ALTER DATABASE "+d.Name+" SET "+tt.setting+" = '"+tt.value+"'")
			wantSome(t, examine(t, d.Pool, nil), tt.check, tt.severity, tt.message, tt.remedy)
			execute(t, d, "ALTER DATABASE "+d.Name+" RESET ALL")
		})
	}
	t.Run("of the server", func(t *testing.T) {
		t.Parallel()
		r := examine(t, dbtest.New(t).Pool, nil)
		wantSome(t, r, "durability", Warning, "fsync is off (from the command line)", "fsync = on")
		wantSome(t, r, "durability", Warning, "full_page_writes is off", "full_page_writes = on")
	})
	t.Run("of the role", func(t *testing.T) {
		t.Parallel()
		d := dbtest.New(t)
		role := newRole(t, d)
		execute(t, d, "ALTER ROLE "+role+" SET statement_timeout = '1s'; ALTER ROLE "+role+" IN DATABASE "+d.Name+" SET statement_timeout = '3s'")
		r := examine(t, as(t, d, role), nil)
		wantSome(t, r, "timeouts", Warning, "statement_timeout is 3s (from the role in this database)", "ALTER ROLE "+role+" IN DATABASE "+d.Name+" SET statement_timeout = '60s'")
	})
	t.Run("transaction_timeout", func(t *testing.T) {
		t.Parallel()
		d := dbtest.New(t)
		if d.Services.Server.Major() < 17 {
			wantSome(t, examine(t, d.Pool, nil), "timeouts", Warning, "statement_timeout is not set", "")
			return // the setting is not known
		}
		execute(t, d, "ALTER DATABASE "+d.Name+" SET transaction_timeout = '2s'")
		wantSome(t, examine(t, d.Pool, nil), "timeouts", Warning, "transaction_timeout is 2s", "")
	})
	t.Run("encoding", func(t *testing.T) {
		t.Parallel()
		d := dbtest.Empty(t)
		other := d.Name[:min(len(d.Name), 50)] + "_ascii"
		execute(t, d, "CREATE DATABASE "+other+" ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
		t.Cleanup(func() { dropDatabase(t, d, other) })
		r := examine(t, in(t, d, other), nil)
		wantFinding(t, only(t, r, "encoding"), Error, "the database's encoding is SQL_ASCII", "ENCODING 'UTF8'")
	})
	t.Run("standby", func(t *testing.T) {
		t.Parallel()
		f := &findings{check: "transactions"}
		x := &examination{
			server:   db.DoctorServerRow{InRecovery: true},
			settings: map[string]db.DoctorSettingsRow{"default_transaction_isolation": {Setting: "read committed"}, "session_replication_role": {Setting: "origin"}},
		}
		if err := x.lookAtTransactions(t.Context(), f); err != nil {
			t.Fatal(err)
		}
		wantFinding(t, f.list[0], Error, "the server is a standby", "primary")
	})
}

func TestFleetThatWillNotFitIsTold(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	execute(t, d, "ALTER DATABASE "+d.Name+" CONNECTION LIMIT 60")
	for range 13 {
		execute(t, d, workerRow("w", 0, true, dummy))
	}
	wantFinding(t, only(t, examine(t, d.Direct, nil), "capacity"), Warning,
		"13 processes are online and may open 5 connections each, 65 in all; the database allows 60", "ALTER DATABASE "+d.Name+" CONNECTION LIMIT 120")
	execute(t, d, "ALTER DATABASE "+d.Name+" CONNECTION LIMIT 20")
	wantFinding(t, only(t, examine(t, d.Direct, nil), "capacity"), Warning, "the database allows 20", "ALTER DATABASE "+d.Name+" CONNECTION LIMIT 65")
	if dbtest.Pooled() {
		wantFinding(t, only(t, examine(t, d.Pool, nil), "capacity"), OK, "13 processes online", "")
	}
}

func TestClockSkewIsMeasuredByTheShortestTrip(t *testing.T) {
	t.Parallel()
	zero := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(ms int) time.Time { return zero.Add(time.Duration(ms) * time.Millisecond) }
	ahead, uncertain := skew([]sample{{at(0), at(100), at(9000)}, {at(200), at(210), at(1205)}, {at(300), at(320), at(0)}})
	if ahead != time.Second || uncertain != 5*time.Millisecond {
		t.Errorf("%s ± %s", ahead, uncertain)
	}
}

func TestClocksThatDifferAreTold(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	for _, tt := range []struct {
		name     string
		off      time.Duration
		severity Severity
		message  string
	}{
		{"same", 0, OK, "the database's clock is"},
		{"a second behind", time.Second, Note, "behind this machine's"},
		{"a minute ahead", -time.Minute, Warning, "the database's clock is 1m0s"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := examine(t, d.Pool, func(d *Doctor) { d.now = func() time.Time { return time.Now().Add(tt.off) } })
			wantFinding(t, only(t, r, "clock"), tt.severity, tt.message, "")
		})
	}
}

func TestNamesAreQuotedWhereNeeded(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"pith": "pith", "my role": `"my role"`, `a"b`: `"a""b"`, "Pith": `"Pith"`} {
		if got := identifier(name); got != want {
			t.Errorf("%s becomes %s", name, got)
		}
	}
}
