package appstatus

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pithworks/pith/internal/dbtest"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

func newApp(t *testing.T, cfg Config) *App {
	t.Helper()
	a, err := New(nil, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func isLost(a *App) bool {
	select {
	case <-a.Lost():
		return true
	default:
		return false
	}
}

// The database counts the lease from the time at which it wrote the beat; the App from the time before
// it sent it, and it keeps a tenth for stopping.
func TestLeaseIsCountedFromBeforeTheBeatWasSent(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		ttl, answered, want time.Duration // after the beat was sent; until lost, after that
	}{
		{30 * time.Second, 0, 27 * time.Second},
		{30 * time.Second, 10 * time.Second, 27 * time.Second},
		{30 * time.Second, 26 * time.Second, 27 * time.Second},
		{30 * time.Second, 40 * time.Second, 40 * time.Second},
		{time.Second, 0, 900 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			a := newApp(t, Config{Type: Worker, TTL: tt.ttl})
			sent := time.Now()
			<-time.After(tt.answered)
			a.prolong(sent)
			<-a.Lost()
			if got := time.Since(sent); got != tt.want || got > max(tt.ttl, tt.answered) {
				t.Errorf("ttl %s, answered after %s: lost after %s, want %s", tt.ttl, tt.answered, got, tt.want)
			}
		})
	}
}

func TestEachBeatProlongsTheLease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newApp(t, Config{Type: Worker})
		for range 10 {
			a.prolong(time.Now())
			<-time.After(26 * time.Second)
			synctest.Wait()
			if isLost(a) {
				t.Fatal("lost within its lease")
			}
		}
		<-time.After(time.Second)
		synctest.Wait()
		if !isLost(a) {
			t.Error("not lost after its lease")
		}
	})
}

func TestBeatThatComesTooLateRevivesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newApp(t, Config{Type: Worker})
		a.prolong(time.Now())
		<-time.After(28 * time.Second)
		synctest.Wait()
		a.prolong(time.Now())
		if !isLost(a) {
			t.Error("it is back")
		}
		a.lose() // twice is once
	})
}

func TestAppThatIsLostEarlyHasNoLeaseLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newApp(t, Config{Type: Worker})
		a.prolong(time.Now())
		a.lose()
		a.prolong(time.Now())
		if !isLost(a) || !errors.Is(a.ended(), ErrLost) {
			t.Error("it is not lost")
		}
		if a.lease.Stop() {
			t.Error("its lease goes on")
		}
	})
}

func TestBeatWithoutARowIsLost(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	a, err := New(d.Pool, Config{Type: Worker, TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.beat(t.Context(), d.Pool); !errors.Is(err, ErrLost) {
		t.Errorf("before it registers: %v", err)
	}
	if err := a.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a.beat(t.Context(), d.Pool); err != nil {
		t.Errorf("registered: %v", err)
	}
	if _, err := d.Direct.Exec(t.Context(), "DELETE FROM app_status"); err != nil {
		t.Fatal(err)
	}
	if err := a.beat(t.Context(), d.Pool); !errors.Is(err, ErrLost) {
		t.Errorf("declared missing: %v", err)
	}
}

func TestBeatWritesTheDatabasesTime(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	a, err := New(d.Pool, Config{Type: API, TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Direct.Exec(t.Context(), "UPDATE app_status SET last_heartbeat = now() - interval '50 minutes'"); err != nil {
		t.Fatal(err)
	}
	if err := a.beat(t.Context(), d.Pool); err != nil {
		t.Fatal(err)
	}
	var fresh bool
	if err := d.Direct.QueryRow(t.Context(), "SELECT now() - last_heartbeat < interval '1 minute' FROM app_status").Scan(&fresh); err != nil || !fresh {
		t.Errorf("fresh %t, %v", fresh, err)
	}
}

// registered makes an App and its row.
func registered(t *testing.T, d *dbtest.DB) *App {
	t.Helper()
	a, err := New(d.Pool, Config{Type: Worker, TTL: time.Hour, Housekeeping: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	return a
}

func exec(t *testing.T, d *dbtest.DB, sql string) {
	t.Helper()
	if _, err := d.Direct.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

func TestBeatTellsOfTheFleetAsCountedAMomentAgo(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	a := registered(t, d)
	beat := func(online, housekeepers int) {
		t.Helper()
		if err := a.beat(t.Context(), d.Pool); err != nil || a.Online() != online || a.Housekeepers() != housekeepers {
			t.Errorf("%d online, %d keep house, %v; want %d and %d", a.Online(), a.Housekeepers(), err, online, housekeepers)
		}
	}
	for _, insert := range []string{"'worker', 'x', '1 hour', now()", "'worker', 'gone', '1 s', now() - interval '1 hour'", "'api', 'other', '1 hour', now()"} {
		exec(t, d, "INSERT INTO app_status (id, app_type, name, ttl, last_heartbeat) SELECT gen_random_uuid(), "+insert)
	}
	exec(t, d, "UPDATE app_fleet SET counted_at = now() + interval '1 hour'") // just now
	beat(1, 1)
	exec(t, d, "UPDATE app_fleet SET counted_at = now() - interval '2 s'")
	beat(2, 1)
	var fresh bool
	if err := d.Direct.QueryRow(t.Context(), "SELECT now() - counted_at < interval '1 minute' FROM app_fleet").Scan(&fresh); err != nil || !fresh {
		t.Errorf("the count is fresh: %t, %v", fresh, err)
	}
	// What the count says after a sweep or an end.
	exec(t, d, "DELETE FROM app_status WHERE name IN ('x', 'gone')")
	exec(t, d, "UPDATE app_fleet SET counted_at = now() - interval '2 s'")
	beat(1, 1)
	// Nobody else has written it: it is written.
	exec(t, d, "DELETE FROM app_fleet")
	beat(1, 1)
}

func TestBeatWaitsForNobodyWhoCounts(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	a := registered(t, d)
	exec(t, d, "UPDATE app_fleet SET counted_at = now() - interval '1 hour', online = 7")
	tx, err := d.Direct.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), "SELECT app_count('worker')"); err != nil {
		t.Fatal(err)
	}
	if err := a.beat(t.Context(), d.Pool); err != nil || a.Online() != 7 {
		t.Errorf("%d online, %v; want the old count", a.Online(), err)
	}
}

func TestBeatFindsTasksThatWaitForAWorker(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	a := registered(t, d)
	beat := func(what string, want bool) {
		t.Helper()
		if err := a.beat(t.Context(), d.Pool); err != nil {
			t.Fatal(err)
		}
		select {
		case <-a.Runnable():
			if !want {
				t.Errorf("%s: it found some", what)
			}
		default:
			if want {
				t.Errorf("%s: it found none", what)
			}
		}
	}
	add := func(kind int, since string) {
		t.Helper()
		exec(t, d, fmt.Sprintf(`INSERT INTO task (id, kind, state, unblocked_at, blocked_on, reserved_resources_record, logging_cid, args)
			VALUES (gen_random_uuid(), %d, 'waiting', now() - interval '%s', 0, '{}', '', 'null')`, kind, since))
	}
	a.Look(true, nil)
	beat("nothing", false)
	exec(t, d, `INSERT INTO task (id, kind, state, blocked_on, not_before, reserved_resources_record, logging_cid, args)
		VALUES (gen_random_uuid(), 1, 'waiting', NULL, now() + interval '1 hour', '{}', '', 'null')`)
	beat("one that is not due", false)
	add(3, "-1 hour")
	beat("one that has just come", false)
	add(2, "1 hour")
	beat("one that waits", true)
	a.Look(false, nil)
	beat("nobody asks", false)
	a.Look(true, []int32{2})
	beat("a kind for others", false)
	a.Look(true, []int32{2, 4})
	add(4, "1 hour")
	beat("kinds for others", false)
	add(5, "1 hour")
	beat("one behind those for others", true)
	a.Look(true, []int32{2, 4, 5})
	beat("all for others", false)
	exec(t, d, "UPDATE task SET not_before = now() - interval '1 s' WHERE blocked_on IS NULL")
	beat("one that is due and has no place", true)
	a.beats.Failed()
	beat("after an outage", false)
	a.beats.Arrived()
	beat("the next one", true)
}

func TestBeatThatFailsIsNotALoss(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	a, err := New(d.Pool, Config{Type: Worker, TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.beat(ctx, d.Pool); err == nil || errors.Is(err, ErrLost) {
		t.Error(err)
	}
	if isLost(a) {
		t.Error("it is lost")
	}
}
