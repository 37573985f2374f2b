package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pithworks/pith/chaos/witness"
	"github.com/pithworks/pith/internal/resend"
)

// fault is something that happens.
type fault struct {
	name   string
	weight int
	// lasts from and to at random; 0: it is over at once.
	from, to time.Duration
	// begin does it, and answers how it is undone, and to which process it was done. It need not be undone in
	// the same way as it was done: what cannot be undone is an error that ends the run.
	begin func(ctx context.Context, b *breaker) (heal func(context.Context) error, to string, err error)
}

// breaker breaks things one after the other.
type breaker struct {
	stage  *stage
	fleet  *fleet
	record *witness.Recorder
	rand   *rand.Rand
	ttl    time.Duration
	out    io.Writer
	faults []fault
	pause  time.Duration // between two, at most
}

// run breaks things until ctx ends, and heals the last one.
func (b *breaker) run(ctx context.Context) error {
	healing := context.WithoutCancel(ctx)
	total := 0
	for _, f := range b.faults {
		total += f.weight
	}
	for resend.Sleep(ctx, time.Duration(b.rand.Int64N(int64(b.pause)))) == nil {
		n := b.rand.IntN(total)
		var f fault
		for _, f = range b.faults {
			if n -= f.weight; n < 0 {
				break
			}
		}
		lasts := f.from
		if f.to > f.from {
			lasts += time.Duration(b.rand.Int64N(int64(f.to - f.from)))
		}
		heal, to, err := f.begin(healing, b)
		if err != nil {
			return fmt.Errorf("fault %s: %w", f.name, err)
		}
		if heal == nil && to == "" {
			continue // there is nothing that it could be done to
		}
		b.record.Add(witness.Event{Kind: witness.Fault, Name: f.name, Process: to})
		fmt.Fprintf(b.out, "%s %-22s %-14s %s\n", time.Now().Format(time.TimeOnly), f.name, to, lasts.Round(time.Millisecond))
		if heal == nil {
			heal = func(context.Context) error { return nil }
		}
		_ = resend.Sleep(ctx, lasts) // or the end comes first
		if err := heal(healing); err != nil {
			return fmt.Errorf("heal %s: %w", f.name, err)
		}
		b.record.Add(witness.Event{Kind: witness.Healed, Name: f.name, Process: to})
	}
	return nil
}

// member draws a process, a worker mostly.
func (b *breaker) member() *member {
	for range 3 {
		if m := b.fleet.members[b.rand.IntN(len(b.fleet.members))]; m.spec.Role == roleWorker {
			return m
		}
	}
	return b.fleet.members[b.rand.IntN(len(b.fleet.members))]
}

// parent draws a worker one of whose children has a long task, if there is one and the draw says so, else any process:
// that such a child ends without its parent's doing is a promise of its own.
func (b *breaker) parent() *member {
	if b.rand.IntN(2) == 0 {
		return b.member()
	}
	for _, e := range b.record.Running() {
		for _, m := range b.fleet.members {
			if m.spec.Name == e.Process && !m.is(e.PID) && len(e.Reserved) > 0 && strings.HasPrefix(e.Reserved[0], longResource) {
				return m
			}
		}
	}
	return b.member()
}

// toOne are the faults that happen to one process.
func toOne(ttl time.Duration) []fault {
	return []fault{
		{"kill", 4, 100 * time.Millisecond, 2 * time.Second, func(_ context.Context, b *breaker) (func(context.Context) error, string, error) {
			m := b.member()
			m.kill()
			return func(context.Context) error { return m.start() }, m.spec.Name, nil
		}},
		{"stop", 4, ttl / 4, 4 * ttl, func(_ context.Context, b *breaker) (func(context.Context) error, string, error) {
			m := b.parent()
			m.signal(syscall.SIGSTOP)
			return func(context.Context) error { m.signal(syscall.SIGCONT); return nil }, m.spec.Name, nil
		}},
		{"kill child", 3, 0, 0, func(_ context.Context, b *breaker) (func(context.Context) error, string, error) {
			return nil, b.child(syscall.SIGKILL, nil), nil
		}},
		{"stop child", 1, ttl / 4, ttl, func(_ context.Context, b *breaker) (func(context.Context) error, string, error) {
			var stopped int
			name := b.child(syscall.SIGSTOP, &stopped)
			if name == "" {
				return nil, "", nil
			}
			return func(context.Context) error {
				_ = syscall.Kill(stopped, syscall.SIGCONT) // it may be gone
				b.record.Add(witness.Event{Kind: witness.Continued, Process: name, PID: stopped})
				return nil
			}, name, nil
		}},
		toxic("cut", 3, 100*time.Millisecond, time.Second, "reset_peer", `{"timeout": 0}`),
		toxic("cut in the middle", 4, 0, time.Second, "limit_data", `{"bytes": %d}`),
		toxic("latency", 2, time.Second, ttl, "latency", `{"latency": %d, "jitter": 100}`),
		toxic("half-open", 4, ttl/4, 3*ttl, "timeout", `{"timeout": 0}`),
		toxic("narrow", 1, time.Second, ttl, "bandwidth", `{"rate": 20}`),
	}
}

// child signals a child of some worker, and answers the worker's name; "": there is none.
func (b *breaker) child(sig syscall.Signal, which *int) string {
	for range 10 {
		m := b.member()
		pids := m.children()
		if len(pids) == 0 {
			continue
		}
		pid := pids[b.rand.IntN(len(pids))]
		if which != nil {
			*which = pid
			b.record.Add(witness.Event{Kind: witness.Stopped, Process: m.spec.Name, PID: pid})
		}
		_ = syscall.Kill(pid, sig) // it may be gone
		return m.spec.Name
	}
	return ""
}

// toxic is a fault of one process's network.
func toxic(name string, weight int, from, to time.Duration, kind, attributes string) fault {
	return fault{name, weight, from, to, func(_ context.Context, b *breaker) (func(context.Context) error, string, error) {
		m := b.member()
		own := attributes
		if strings.Contains(own, "%d") {
			own = fmt.Sprintf(own, 50+b.rand.IntN(1000))
		}
		// To the database, from there, or both.
		ways := [][]string{{"upstream"}, {"downstream"}, {"upstream", "downstream"}}[b.rand.IntN(3)]
		var ids []string
		for _, way := range ways {
			id := strconv.FormatUint(b.rand.Uint64(), 16) // the same may happen twice at a time
			_, err := m.net.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(
				`{"name": %q, "type": %q, "stream": %q, "toxicity": 1, "attributes": %s}`, id, kind, way, own)))
			if err != nil {
				return nil, "", err
			}
			ids = append(ids, id)
		}
		return func(ctx context.Context) error {
			var errs []error
			for _, id := range ids {
				errs = append(errs, m.net.Toxics.RemoveToxic(ctx, id))
			}
			return errors.Join(errs...)
		}, m.spec.Name, nil
	}}
}

// toAll are the faults of what all share.
func toAll(ttl time.Duration) []fault {
	return []fault{
		{"PgBouncer crashes", 3, 50 * time.Millisecond, 3 * time.Second, func(_ context.Context, b *breaker) (func(context.Context) error, string, error) {
			b.stage.bouncer.Kill()
			return b.stage.bouncer.Restart, "PgBouncer", nil
		}},
		{"RDS Proxy crashes", 3, 50 * time.Millisecond, 3 * time.Second, func(_ context.Context, b *breaker) (func(context.Context) error, string, error) {
			b.stage.standIn.stop()
			return b.stage.standIn.start, "stand-in", nil
		}},
		{"PostgreSQL crashes", 3, 0, ttl, func(_ context.Context, b *breaker) (func(context.Context) error, string, error) {
			b.stage.server.Kill()
			return func(ctx context.Context) error { return b.stage.server.Restart(ctx, true) }, "PostgreSQL", nil
		}},
		{"connections terminated", 4, 0, 0, func(ctx context.Context, b *breaker) (func(context.Context) error, string, error) {
			_, err := b.stage.direct.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
				WHERE datname = $1 AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND random() < 0.5`, database)
			return nil, "PostgreSQL", passing(err)
		}},
		neighbor("old snapshot", 2, ttl, 4*ttl, pgx.RepeatableRead, `SELECT count(*) FROM task`),
		neighbor("locks buckets", 2, 100*time.Millisecond, ttl/2, pgx.ReadCommitted,
			`SELECT FROM (SELECT bucket FROM resource_lock ORDER BY random() LIMIT 300) b JOIN resource_lock l USING (bucket) FOR UPDATE OF l`),
		neighbor("locks tasks", 2, 100*time.Millisecond, ttl/2, pgx.ReadCommitted,
			`SELECT FROM task WHERE finished_at IS NULL ORDER BY random() LIMIT 20 FOR UPDATE`),
		neighbor("locks beats", 2, ttl/4, 2*ttl, pgx.ReadCommitted, `SELECT FROM app_status ORDER BY random() LIMIT 1 FOR UPDATE`),
		neighbor("deadlocks", 2, 100*time.Millisecond, time.Second, pgx.ReadCommitted,
			`SELECT FROM task WHERE finished_at IS NULL ORDER BY random() LIMIT 10 FOR UPDATE`,
			`SELECT FROM resource_lock WHERE bucket >= 0 ORDER BY bucket DESC FOR UPDATE`),
		neighbor("serializable", 2, 100*time.Millisecond, time.Second, pgx.Serializable,
			`UPDATE app_status SET versions = versions`, `SELECT count(*) FROM task_reservation`),
		{"pool is full", 3, ttl / 4, ttl, func(ctx context.Context, b *breaker) (func(context.Context) error, string, error) {
			return b.hog(ctx)
		}},
		{"disk is full", 1, time.Second, ttl, func(_ context.Context, b *breaker) (func(context.Context) error, string, error) {
			return b.fillDisk()
		}},
	}
}

// passing is nil for what may happen to a statement in a run like this.
func passing(err error) error {
	if err == nil || resend.Passing(err) {
		return nil
	}
	return err
}

// neighbor is another program's transaction that does this and then sits there.
func neighbor(name string, weight int, from, to time.Duration, level pgx.TxIsoLevel, statements ...string) fault {
	return fault{name, weight, from, to, func(ctx context.Context, b *breaker) (func(context.Context) error, string, error) {
		ctx, cancel := context.WithTimeout(ctx, 2*to)
		tx, err := b.stage.direct.BeginTx(ctx, pgx.TxOptions{IsoLevel: level})
		if err != nil {
			cancel()
			return nil, "", passing(err)
		}
		for _, s := range statements {
			_, _ = tx.Exec(ctx, s) // it may be the victim
		}
		return func(context.Context) error {
			_ = tx.Rollback(ctx) // its connection may be gone
			cancel()
			return nil
		}, "PostgreSQL", nil
	}}
}

// hog takes all server connections of PgBouncer.
func (b *breaker) hog(ctx context.Context) (func(context.Context) error, string, error) {
	ctx, cancel := context.WithCancel(ctx)
	for range serverConns {
		go func() {
			conn, err := pgx.Connect(ctx, b.stage.bouncer.URL(database)+"&default_query_exec_mode=exec")
			if err != nil {
				return
			}
			defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
			if _, err := conn.Exec(ctx, "BEGIN"); err == nil {
				<-ctx.Done()
			}
		}()
	}
	return func(context.Context) error { cancel(); return nil }, "PgBouncer", nil
}

// fillDisk takes all space of the server's file system. The server may crash of it, and not come back.
func (b *breaker) fillDisk() (func(context.Context) error, string, error) {
	if b.stage.small == "" {
		return nil, "", nil
	}
	name := b.stage.small + "/full"
	f, err := os.Create(name)
	if err != nil {
		return nil, "", err
	}
	block := make([]byte, 1<<20)
	for len(block) > 0 {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
			block = block[:len(block)/2]
		} else if err != nil {
			return nil, "", errors.Join(err, f.Close())
		}
	}
	if err := f.Close(); err != nil && !errors.Is(err, syscall.ENOSPC) {
		return nil, "", err
	}
	return func(ctx context.Context) error {
		if err := os.Remove(name); err != nil {
			return err
		}
		select {
		case <-b.stage.server.Done():
			return b.stage.server.Restart(ctx, true)
		default:
			return nil
		}
	}, "PostgreSQL", nil
}
