// Package appstatus keeps the one row by which a running process is known: its app status.
//
// Whoever may hold a task, be it a worker or an API process that runs an immediate task, registers
// an App and beats. Tasks point at the row (task.app_lock). A process whose beat fails to arrive for
// its TTL is missing: anyone may delete its row, and the foreign key frees its tasks.
//
// An App ends itself first. It counts its lease on the monotonic clock from the moment before it sent
// the last beat that succeeded, while the database counts from the moment that it wrote the beat,
// which is later. Lost is closed while the database still considers it online, so whatever runs
// under the App can stop before anybody else may take over. An App that is lost never comes back; a
// process that wants to go on makes a new one.
//
// The package never starts or moves tasks.
package appstatus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/pacing"
	"github.com/pithworks/pith/internal/resend"
	"github.com/pithworks/pith/pool"
)

// ErrLost means that the App's lease has ended, or that its row is gone: declared missing.
var ErrLost = errors.New("app status lost: the process did not beat in time, or was declared missing")

// Type says what a process does.
type Type string

// The types of processes, as in Pulp.
const (
	API     Type = "api"
	Content Type = "content"
	Worker  Type = "worker"
)

// defaultTTL holds Pulp's API_APP_TTL, CONTENT_APP_TTL and WORKER_TTL.
var defaultTTL = map[Type]time.Duration{API: 120 * time.Second, Content: 30 * time.Second, Worker: 30 * time.Second}

// Config describes a process.
type Config struct {
	// Type is required.
	Type Type
	// NameTemplate makes the name: {pid}, {hostname} and {fqdn} are replaced. Default: {pid}@{hostname}.
	NameTemplate string
	// Versions of the components in this process, label to PEP 440 version. Default: none.
	Versions map[string]string
	// TaskNames are the task types that a worker knows. Default: none.
	TaskNames []string
	// Housekeeping says that the process shares in the fleet's duties. Default: false.
	Housekeeping bool
	// TTL is how long after a beat the process counts as online, at least a second. Default: 120 s
	// for api, else 30 s.
	TTL time.Duration
	// Prolonged is called with the new end of the lease, a time of this process's monotonic clock, when the App is
	// registered and after each beat. It must not wait. Default: nobody is told.
	Prolonged func(until time.Time)
	// Log gets one line when beats fail and when they work again. Default: none.
	Log *slog.Logger
}

// App is the registration of this process.
type App struct {
	db     *pgxpool.Pool
	cfg    Config
	id     uuid.UUID
	name   string
	online atomic.Int64

	housekeepers atomic.Int64
	// foreign are the kinds of tasks that beats don't look for; nil: they look for none.
	foreign  atomic.Pointer[[]int32]
	runnable chan struct{}
	beats    *pacing.Beats // Run's

	mu    sync.Mutex
	own   *pgxpool.Pool // the beats' own connection, from Connect until Run takes it
	lease *time.Timer
	until time.Time // the lease ends; on the monotonic clock
	lost  chan struct{}
}

// New validates the configuration; it sends nothing.
func New(db *pgxpool.Pool, cfg Config) (*App, error) {
	ttl, ok := defaultTTL[cfg.Type]
	if !ok {
		return nil, fmt.Errorf("app type %q: must be api, content or worker", cfg.Type)
	}
	if cfg.TTL == 0 {
		cfg.TTL = ttl
	}
	if cfg.TTL < time.Second {
		return nil, fmt.Errorf("app ttl %s: at least a second is needed", cfg.TTL)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("make app id: %w", err)
	}
	a := &App{
		db: db, cfg: cfg, id: id, name: expand(cfg.NameTemplate), lost: make(chan struct{}),
		runnable: make(chan struct{}, 1), beats: pacing.NewBeats(cfg.TTL, nil),
	}
	a.online.Store(1)
	return a, nil
}

func expand(template string) string {
	if template == "" {
		template = "{pid}@{hostname}"
	}
	host, err := os.Hostname()
	if err != nil || host == "" || host[0] == '.' {
		host = "localhost"
	}
	short, _, _ := strings.Cut(host, ".")
	return strings.NewReplacer("{pid}", strconv.Itoa(os.Getpid()), "{hostname}", short, "{fqdn}", host).Replace(template)
}

// ID is what task.app_lock holds.
func (a *App) ID() uuid.UUID { return a.id }

// Name is the expanded template.
func (a *App) Name() string { return a.name }

// TTL is the length of the lease.
func (a *App) TTL() time.Duration { return a.cfg.TTL }

// Online is how many processes of this type are online, this one included, as its last beat has told;
// the count was then a second old at most, or older by what a count takes that was under way.
func (a *App) Online() int { return int(a.online.Load()) }

// Housekeepers is how many of them keep house, by the same count.
func (a *App) Housekeepers() int { return int(a.housekeepers.Load()) }

// Leased reports whether the process may still act under this App. It asks the clock, so it is right
// also in the moment after a pause of the process, when Lost is not closed yet.
func (a *App) Leased() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Now().Before(a.until)
}

// Lost is closed when the lease has ended, before anybody else may take over, or when a beat found
// no row.
func (a *App) Lost() <-chan struct{} { return a.lost }

// Look makes beats look for tasks that are runnable, or due, of all kinds but these (on), or not (the default). A
// beat that finds one signals on Runnable, unless it had failed before: after an outage many beat at the same moments. In
// a large fleet most beats count only what nobody has taken for a quarter of a second: see pacing.Beats.Patience.
func (a *App) Look(on bool, foreign []int32) {
	if !on {
		a.foreign.Store(nil)
		return
	}
	foreign = append([]int32{}, foreign...)
	a.foreign.Store(&foreign)
}

// Runnable gets a signal when a beat has found runnable tasks; see Look. Signals that nobody takes are one.
func (a *App) Runnable() <-chan struct{} { return a.runnable }

// Connect opens the beats' own connection before Register, which then uses it, too: neither waits for
// other statements of this process. So where many start at once, the lease of each begins when nothing but
// the database itself can delay its beats. Without it Register uses the pool, and Run connects.
// It tries until it succeeds, the database refuses, or ctx ends. The connection is closed by Run, or by
// Unregister, one of which must follow, even after an error.
func (a *App) Connect(ctx context.Context) error {
	own, err := pool.Single(ctx, a.db)
	if err != nil {
		return fmt.Errorf("connect app: %w", err)
	}
	if before := a.take(); before != nil {
		before.Close()
	}
	a.mu.Lock()
	a.own = own
	a.mu.Unlock()
	failures := 0
	err = resend.Do(ctx, 0, a.cfg.TTL, func(ctx context.Context) error {
		conn, err := own.Acquire(ctx)
		if err == nil {
			conn.Release()
		} else if failures++; failures == 1 {
			a.cfg.Log.Warn("connection for beats failed", "app", a.name, "err", err)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("connect app: %w", err)
	}
	return nil
}

// take answers the connection that Connect has made, which is the caller's then; nil: there is none.
func (a *App) take() *pgxpool.Pool {
	a.mu.Lock()
	defer a.mu.Unlock()
	own := a.own
	a.own = nil
	return own
}

// ownOr is that connection, or else another pool.
func (a *App) ownOr(other *pgxpool.Pool) *pgxpool.Pool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.own != nil {
		return a.own
	}
	return other
}

// Register writes the row and starts the lease. It tries until it succeeds, the database refuses, or
// ctx ends.
func (a *App) Register(ctx context.Context) error {
	versions := []byte("{}")
	if a.cfg.Versions != nil {
		var err error
		if versions, err = json.Marshal(a.cfg.Versions); err != nil {
			return fmt.Errorf("register app: %w", err)
		}
	}
	failures := 0
	register := func(ctx context.Context) error {
		conn, err := a.ownOr(a.db).Acquire(ctx)
		if err != nil {
			return err
		}
		defer conn.Release()
		sent := time.Now() // the wait for the connection is not the lease's
		fleet, err := db.New().AppStatusRegister(ctx, conn, db.AppStatusRegisterParams{
			ID: pgUUID(a.id), AppType: string(a.cfg.Type), Name: a.name, Versions: string(versions),
			TaskNames: append([]string{}, a.cfg.TaskNames...), TTLSeconds: a.cfg.TTL.Seconds(), Housekeeping: a.cfg.Housekeeping,
		})
		if err == nil {
			a.online.Store(int64(fleet.Online))
			a.housekeepers.Store(int64(fleet.Housekeepers))
			a.prolong(sent)
		}
		return err
	}
	// An answer that comes later leaves too little of the lease.
	err := resend.Do(ctx, 0, a.cfg.TTL*2/3, func(ctx context.Context) error {
		err := register(ctx)
		if err == nil {
			return nil
		}
		if failures++; failures == 1 {
			a.cfg.Log.Warn("registration failed", "app", a.name, "err", err)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("register app: %w", err)
	}
	return nil
}

// margin is the part of the lease that is left for stopping when Lost is closed.
func (a *App) margin() time.Duration { return a.cfg.TTL / 10 }

func (a *App) prolong(sent time.Time) {
	left := a.cfg.TTL - a.margin() - time.Since(sent)
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.lease == nil:
		a.lease = time.AfterFunc(left, a.lose)
	case !time.Now().Before(a.until) || !a.lease.Stop():
		return // the lease has ended meanwhile: this beat came too late
	default:
		a.lease.Reset(left)
	}
	a.until = sent.Add(a.cfg.TTL - a.margin())
	if a.cfg.Prolonged != nil {
		a.cfg.Prolonged(a.until)
	}
}

func (a *App) lose() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lease != nil {
		a.lease.Stop()
	}
	a.until = time.Time{}
	select {
	case <-a.lost:
	default:
		close(a.lost)
	}
}

// Run beats three times per TTL, or every 10 s if that is oftener, the first time earlier, on a connection
// of its own, until ctx ends (nil) or the App is lost (ErrLost). A beat that fails is sent again with jitter
// for as long as the lease lasts.
func (a *App) Run(ctx context.Context) error {
	// Work that fills the pool must not starve the beat.
	own := a.take()
	if own == nil {
		var err error
		if own, err = pool.Single(ctx, a.db); err != nil {
			return fmt.Errorf("beat: %w", err)
		}
	}
	defer own.Close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		select {
		case <-a.lost:
			stop()
		case <-ctx.Done():
		}
	}()
	for {
		if resend.Sleep(ctx, a.beats.Next(a.Online())) != nil {
			return a.ended()
		}
		switch err := a.beat(ctx, own); {
		case err == nil:
			if a.beats.Failing() {
				a.cfg.Log.Info("beat works again", "app", a.name)
			}
			a.beats.Arrived()
		case errors.Is(err, ErrLost):
			a.lose()
			return ErrLost
		case ctx.Err() != nil:
			return a.ended()
		default:
			if !a.beats.Failing() {
				a.cfg.Log.Warn("beat failed", "app", a.name, "err", err)
			}
			a.beats.Failed()
		}
	}
}

func (a *App) ended() error {
	select {
	case <-a.lost:
		return ErrLost
	default:
		return nil
	}
}

// beat prolongs the lease, and takes in what it is told of the fleet.
func (a *App) beat(ctx context.Context, own *pgxpool.Pool) error {
	ctx, cancel := context.WithTimeout(ctx, pacing.BeatEvery(a.cfg.TTL))
	defer cancel()
	conn, err := own.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("beat: %w", err)
	}
	defer conn.Release()
	p := db.AppStatusBeatParams{ID: pgUUID(a.id), ForeignKinds: []int32{}}
	if foreign := a.foreign.Load(); foreign != nil {
		p.Patience = pgtype.Float8{Float64: a.beats.Patience(a.Online()).Seconds(), Valid: true}
		p.ForeignKinds = *foreign
	}
	sent := time.Now() // the wait for the connection is not the lease's
	told, err := db.New().AppStatusBeat(ctx, conn, p)
	if err != nil {
		return fmt.Errorf("beat: %w", err)
	}
	if len(told) != 3 {
		return ErrLost
	}
	a.online.Store(int64(told[0]))
	a.housekeepers.Store(int64(told[1]))
	a.prolong(sent)
	if told[2] != 0 && !a.beats.Failing() {
		select {
		case a.runnable <- struct{}{}:
		default:
		}
	}
	return nil
}

// Unregister deletes the row, for a clean end. Whatever the App still holds is freed.
func (a *App) Unregister(ctx context.Context) error {
	a.lose()
	if own := a.take(); own != nil {
		defer own.Close()
	}
	err := resend.Do(ctx, 10*time.Second, 5*time.Second, func(ctx context.Context) error {
		// No row is as good: somebody swept it.
		_, err := db.New().AppStatusUnregister(ctx, a.db, pgUUID(a.id))
		return err
	})
	if err != nil {
		return fmt.Errorf("unregister app: %w", err)
	}
	return nil
}

// Status is what the database knows of a process.
type Status struct {
	ID            uuid.UUID         `json:"id"`
	Type          Type              `json:"app_type"`
	Name          string            `json:"name"`
	Versions      map[string]string `json:"versions"`
	TaskNames     []string          `json:"task_names"`
	CreatedAt     time.Time         `json:"created_at"`
	LastHeartbeat time.Time         `json:"last_heartbeat"`
	TTL           time.Duration     `json:"-"`
	// Online: the lease has not ended on the database's clock.
	Online bool `json:"online"`
	// CurrentTask is the newest running task; nil if none.
	CurrentTask *uuid.UUID `json:"current_task"`
	// Holding counts the tasks that it holds.
	Holding int `json:"holding"`
}

// List reads processes of one type ("" for all), latest registered first.
func List(ctx context.Context, dbtx db.DBTX, t Type, limit, offset int) ([]Status, error) {
	rows, err := db.New().AppStatusList(ctx, dbtx, db.AppStatusListParams{AppType: string(t), Most: int32(limit), Skip: int32(offset)})
	if err != nil {
		return nil, fmt.Errorf("list apps: %w", err)
	}
	list := make([]Status, 0, len(rows))
	for _, r := range rows {
		s := Status{
			ID: r.ID.Bytes, Type: Type(r.AppType), Name: r.Name, TaskNames: r.TaskNames, CreatedAt: r.CreatedAt.Time.UTC(),
			LastHeartbeat: r.LastHeartbeat.Time.UTC(), TTL: time.Duration(r.TTLSeconds * float64(time.Second)),
			Online: r.Online, Holding: int(r.Holding),
		}
		if err := json.Unmarshal(r.Versions, &s.Versions); err != nil {
			return nil, fmt.Errorf("list apps: versions of %s: %w", s.Name, err)
		}
		if r.CurrentTask.Valid {
			id := uuid.UUID(r.CurrentTask.Bytes)
			s.CurrentTask = &id
		}
		list = append(list, s)
	}
	return list, nil
}

// Sweep deletes the rows of processes that are missing and returns them. The foreign key frees their
// tasks. Any number of processes may sweep at once.
func Sweep(ctx context.Context, dbtx db.DBTX) ([]Status, error) {
	rows, err := db.New().AppStatusSweep(ctx, dbtx)
	if err != nil {
		return nil, fmt.Errorf("sweep apps: %w", err)
	}
	var gone []Status
	for _, r := range rows {
		gone = append(gone, Status{ID: r.ID.Bytes, Type: Type(r.AppType), Name: r.Name, LastHeartbeat: r.LastHeartbeat.Time.UTC()})
	}
	return gone, nil
}

func pgUUID(id uuid.UUID) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: true} }
