package appstatus

import (
	"context"
	"errors"
	"math"
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

func TestBeatCountsItsTypeThatIsOnline(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	a, err := New(d.Pool, Config{Type: Worker})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, insert := range []string{"'worker', 'x', '1 hour', now()", "'worker', 'gone', '1 s', now() - interval '1 hour'", "'api', 'other', '1 hour', now()"} {
		if _, err := d.Direct.Exec(t.Context(), "INSERT INTO app_status (id, app_type, name, ttl, last_heartbeat) SELECT gen_random_uuid(), "+insert); err != nil {
			t.Fatal(err)
		}
	}
	// A small fleet counts at every second beat or so; a large one rarely.
	for i := 0; a.Online() != 2; i++ {
		if err := a.beat(t.Context(), d.Pool); err != nil {
			t.Fatal(err)
		}
		if i == 1000 {
			t.Fatalf("after %d beats it counts %d", i, a.Online())
		}
	}
	a.online.Store(math.MaxInt32)
	if err := a.beat(t.Context(), d.Pool); err != nil || a.Online() != math.MaxInt32 {
		t.Errorf("it counted in a large fleet: %d, %v", a.Online(), err)
	}
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
