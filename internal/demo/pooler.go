package demo

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// Pooler is what the pooler's own console says of the run.
type Pooler struct {
	// Clients and Servers are the most connections seen at a time, to the pooler and from it.
	Clients int64 `json:"client_connections"`
	Servers int64 `json:"server_connections"`
	// Transactions were sent through it.
	Transactions int64 `json:"transactions"`
}

// console watches what a PgBouncer does for one database.
type console struct {
	conn     *pgx.Conn
	database string
	seen     Pooler
	first    int64 // transactions before
}

func openConsole(ctx context.Context, url, database string) (*console, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("connect to the pooler's console: %w", err)
	}
	c := &console{conn: conn, database: database}
	if c.first, err = c.transactions(ctx); err != nil {
		c.close(ctx)
		return nil, err
	}
	return c, nil
}

func (c *console) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = c.conn.Close(ctx)
}

// look counts the connections now.
func (c *console) look(ctx context.Context) error {
	rows, err := c.show(ctx, "SHOW POOLS")
	if err != nil {
		return err
	}
	var now Pooler
	for _, row := range rows {
		for _, column := range []string{"cl_active", "cl_waiting"} {
			now.Clients += row[column]
		}
		for _, column := range []string{"sv_active", "sv_idle", "sv_used", "sv_tested", "sv_login"} {
			now.Servers += row[column]
		}
	}
	c.seen.Clients = max(c.seen.Clients, now.Clients)
	c.seen.Servers = max(c.seen.Servers, now.Servers)
	return nil
}

// sum tells what was seen until now.
func (c *console) sum(ctx context.Context) (Pooler, error) {
	n, err := c.transactions(ctx)
	c.seen.Transactions = n - c.first
	return c.seen, err
}

func (c *console) transactions(ctx context.Context) (int64, error) {
	rows, err := c.show(ctx, "SHOW STATS")
	if err != nil {
		return 0, err
	}
	var n int64
	for _, row := range rows {
		n += row["total_xact_count"]
	}
	return n, nil
}

// show returns the numbers of each row about the database, by column.
func (c *console) show(ctx context.Context, what string) ([]map[string]int64, error) {
	rows, err := c.conn.Query(ctx, what)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	defer rows.Close()
	var out []map[string]int64
	for rows.Next() {
		row := map[string]int64{}
		ours := false
		for i, raw := range rows.RawValues() { // text, in the simple protocol
			name := rows.FieldDescriptions()[i].Name
			if name == "database" {
				ours = string(raw) == c.database
			}
			if n, err := strconv.ParseInt(string(raw), 10, 64); err == nil {
				row[name] = n
			}
		}
		if ours {
			out = append(out, row)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return out, nil
}
