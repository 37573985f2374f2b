package appstatus_test

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/dbtest"
)

func TestRegisterCountsThoseWhoCameSinceTheLastCount(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	register(t, d.Pool, appstatus.Config{Type: appstatus.Worker})
	exec(t, d, "UPDATE app_fleet SET counted_at = now() + interval '1 hour'")
	for want := 2; want <= 5; want++ {
		app := register(t, d.Pool, appstatus.Config{Type: appstatus.Worker})
		// Again is the same registration.
		if err := app.Register(t.Context()); err != nil || app.Online() < want || app.Online() > 2*want {
			t.Errorf("%d online, want %d or, as if each had come twice, more; %v", app.Online(), want, err)
		}
	}
	var online int
	if err := d.Direct.QueryRow(t.Context(), "SELECT online FROM app_fleet").Scan(&online); err != nil || online != 1 {
		t.Errorf("somebody has counted: %d, %v", online, err)
	}
}

func TestManyWhoStartAtOnceKnowOfEachOther(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	const n = 40
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		knew  []int
		fails []error
	)
	for range n {
		wg.Go(func() {
			app, err := appstatus.New(d.Pool, appstatus.Config{Type: appstatus.Worker})
			if err == nil {
				err = app.Register(t.Context())
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				fails = append(fails, err)
				return
			}
			knew = append(knew, app.Online())
		})
	}
	wg.Wait()
	slices.Sort(knew)
	// Of those that register at the same moment one may miss the others, which are no more than the pool has
	// connections.
	for i, online := range knew {
		if online < i+1-int(d.Pool.Config().MaxConns) || online > n {
			t.Errorf("%d know of %v", n, knew)
			break
		}
	}
	if len(fails) > 0 {
		t.Error(errors.Join(fails...))
	}
}

func TestConnectedAppNeitherRegistersNorBeatsThroughThePool(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	tr := tracer{make(chan struct{}, 1)}
	pool := reopen(t, d, func(c *pgxpool.Config) { c.MaxConns, c.ConnConfig.Tracer = 1, tr })
	busy, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Release()
	app, err := appstatus.New(pool, appstatus.Config{Type: appstatus.Worker, TTL: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // again is once
		if err := app.Connect(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := app.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	runFor(t, app, 1, tr)
}

func TestUnregisterClosesAConnectionThatNobodyRan(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	app, err := appstatus.New(d.Pool, appstatus.Config{Type: appstatus.Worker})
	if err != nil {
		t.Fatal(err)
	}
	if err := app.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := app.Unregister(t.Context()); err != nil { // TestMain looks for what is left
		t.Error(err)
	}
}
