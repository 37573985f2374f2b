package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
)

// baseFloor is the base of those that send bare SQL: what a queue costs at least. Its table is like that
// of tasks: narrow, a primary key, and one partial index of what may be claimed.
const baseFloor = "floor"

func init() {
	bases[baseFloor] = func(ctx context.Context, p *pgxpool.Pool) error {
		_, err := p.Exec(ctx, `CREATE TABLE floor (
			id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
			state smallint NOT NULL DEFAULT 0,
			holder int,
			created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
			started_at timestamptz,
			finished_at timestamptz,
			args json NOT NULL
		) WITH (fillfactor = 90);
		CREATE INDEX floor_ready ON floor (id) WHERE state = 0`)
		return err
	}
}

const (
	// floorRecorded counts the rows that are done.
	floorRecorded = "SELECT count(*) FROM floor WHERE state = 2"
	// floorConns is how many connections claim: with more of them they skip over each other's locks.
	floorConns = 4
)

const (
	floorClaim = `UPDATE floor SET state = 1, holder = $1, started_at = clock_timestamp() WHERE id IN
		(SELECT id FROM floor WHERE state = 0 ORDER BY id LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED) RETURNING id`
	floorComplete = `UPDATE floor SET state = 2, holder = NULL, finished_at = clock_timestamp()
		FROM unnest($1::bigint[]) AS ended (id) WHERE floor.id = ended.id AND state = 1 AND holder = $2`
	floorInsert    = "INSERT INTO floor (args) SELECT args::json FROM unnest($1::text[]) AS new (args)"
	floorInsertOne = "INSERT INTO floor (args) VALUES ($1::json)"
)

// emptyRows fills the floor.
var emptyRows = filling{"empty rows", func(ctx context.Context, p *pgxpool.Pool, n int) error {
	_, err := p.Exec(ctx, "INSERT INTO floor (args) SELECT '{}' FROM generate_series(1, $1)", n)
	return err
}}

// floorWorks claims batches and completes the ones before, both in one flight, on some connections.
func floorWorks(conns, batch int) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		p, err := t.open(ctx, conns)
		if err != nil {
			return err
		}
		all, ctx := errgroup.WithContext(ctx)
		for holder := range conns {
			all.Go(func() error { return floorTurns(ctx, t, p, holder, batch) })
		}
		return all.Wait()
	}
}

// floorTurns is one connection's work, until ctx ends or there is nothing left.
func floorTurns(ctx context.Context, t *trial, p *pgxpool.Pool, holder, batch int) error {
	var held []int64
	for {
		want := batch
		if ctx.Err() != nil {
			want = 0
		}
		if want == 0 && len(held) == 0 {
			return nil
		}
		var flight pgx.Batch
		if len(held) > 0 {
			flight.Queue(floorComplete, held, holder)
		}
		if want > 0 {
			flight.Queue(floorClaim, holder, want)
		}
		claimed, err := floorTurn(context.WithoutCancel(ctx), p, &flight, len(held), want > 0)
		if err != nil {
			return fmt.Errorf("floor: %w", err)
		}
		if want > 0 && len(claimed) == 0 && len(held) == 0 {
			<-ctx.Done() // all is done
			return nil
		}
		t.Done(len(claimed)) // a bare row's work is done when it is there
		held = claimed
	}
}

func floorTurn(ctx context.Context, p *pgxpool.Pool, flight *pgx.Batch, held int, claim bool) ([]int64, error) {
	results := p.SendBatch(ctx, flight)
	defer results.Close()
	if held > 0 {
		tag, err := results.Exec()
		if err != nil {
			return nil, err
		}
		if int(tag.RowsAffected()) != held {
			return nil, fmt.Errorf("completed %d of %d", tag.RowsAffected(), held)
		}
	}
	if !claim {
		return nil, results.Close()
	}
	rows, err := results.Query()
	if err != nil {
		return nil, err
	}
	claimed, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, err
	}
	return claimed, results.Close()
}

// floorInserts inserts so many rows at a time from some goroutines, and times each statement.
func floorInserts(goroutines, batch int) func(context.Context, *trial) error {
	args := make([]string, batch)
	for i := range args {
		args[i] = "{}"
	}
	return manyTimes(goroutines, batch, func(_ context.Context, p *pgxpool.Pool) (func(context.Context, int) error, error) {
		return func(ctx context.Context, _ int) error {
			if batch == 1 {
				_, err := p.Exec(ctx, floorInsertOne, args[0])
				return err
			}
			_, err := p.Exec(ctx, floorInsert, args)
			return err
		}, nil
	})
}

// manyTimes has some goroutines, with a connection each, do something that counts as so many tasks, one
// after the other and timed, until ctx ends. One that is under way then is let finish.
func manyTimes(goroutines, tasks int, prepare func(context.Context, *pgxpool.Pool) (func(ctx context.Context, i int) error, error)) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		p, err := t.open(ctx, goroutines)
		if err != nil {
			return err
		}
		once, err := prepare(ctx, p)
		if err != nil {
			return err
		}
		all, ctx := errgroup.WithContext(ctx)
		for g := range goroutines {
			all.Go(func() error {
				for i := g; ctx.Err() == nil; i += goroutines {
					start := time.Now()
					if err := once(context.WithoutCancel(ctx), i); err != nil {
						return err
					}
					t.Took(time.Since(start))
					t.Done(tasks)
				}
				return nil
			})
		}
		return all.Wait()
	}
}
