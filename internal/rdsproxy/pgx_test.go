package rdsproxy

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
)

// TestPgxWorksInEveryModeOverFewServerConnections runs more clients than there are
// server connections, each with statements of its own, so that nearly every
// transaction finds its connection as another client left it.
func TestPgxWorksInEveryModeOverFewServerConnections(t *testing.T) {
	t.Parallel()
	const clients, rounds, servers = 6, 25, 2
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			p := startProxy(t, Config{PoolSize: servers})
			cfg, err := pgxpool.ParseConfig(p.url("pith", "sslmode=disable"))
			if err != nil {
				t.Fatal(err)
			}
			cfg.MaxConns = clients
			cfg.ConnConfig.DefaultQueryExecMode = mode
			cfg.ConnConfig.StatementCacheCapacity = 3 // statements are closed, too
			cfg.ConnConfig.DescriptionCacheCapacity = 3
			ctx := deadline(t)
			pool, err := pgxpool.NewWithConfig(ctx, cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			if _, err := pool.Exec(ctx, "CREATE TABLE sums (client int, n int)"); err != nil {
				t.Fatal(err)
			}
			g, groupCtx := errgroup.WithContext(ctx)
			for client := range clients {
				g.Go(func() error { return useClient(groupCtx, pool, client, rounds) })
			}
			if err := g.Wait(); err != nil {
				t.Fatal(err)
			}
			var n int
			if err := pool.QueryRow(ctx, "SELECT count(*) FROM sums").Scan(&n); err != nil {
				t.Fatal(err)
			}
			if want := clients * rounds * 2; n != want {
				t.Errorf("%d rows, want %d", n, want)
			}
			for _, f := range p.Findings() {
				if f.Pinned {
					t.Errorf("pinned by %s: %s", f.Construct, f.Statement)
				}
			}
			if m := p.Metrics(); m.DatabaseConnections > servers {
				t.Errorf("%d server connections, want at most %d", m.DatabaseConnections, servers)
			}
		})
	}
}

func useClient(ctx context.Context, pool *pgxpool.Pool, client, rounds int) error {
	for round := range rounds {
		// Five texts turn over a cache of three.
		var got string
		text := fmt.Sprintf("SELECT $1::text || ' of %d'", round%5)
		if err := pool.QueryRow(ctx, text, fmt.Sprint(client)).Scan(&got); err != nil {
			return fmt.Errorf("select: %w", err)
		}
		if want := fmt.Sprintf("%d of %d", client, round%5); got != want {
			return fmt.Errorf("got %q, want %q", got, want)
		}
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "INSERT INTO sums VALUES ($1, $2)", client, round); err != nil {
				return err
			}
			var b pgx.Batch
			b.Queue("INSERT INTO sums VALUES ($1, $2)", client, -round)
			b.Queue("SELECT count(*) FROM sums WHERE client = $1", client)
			return tx.SendBatch(ctx, &b).Close()
		})
		if err != nil {
			return fmt.Errorf("transaction: %w", err)
		}
		if _, err := pool.Exec(ctx, "SELECT 1 / $1::int", 0); err == nil {
			return fmt.Errorf("division by zero succeeded")
		}
	}
	return nil
}
