package pinning

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// nothing answers every statement with success and no rows, until the client leaves.
func nothing(conn net.Conn) error {
	b := pgproto3.NewBackend(conn, conn)
	if _, err := b.ReceiveStartupMessage(); err != nil {
		return err
	}
	b.Send(&pgproto3.AuthenticationOk{})
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	for {
		if err := b.Flush(); err != nil {
			return err
		}
		message, err := b.Receive()
		if err != nil {
			return err
		}
		switch m := message.(type) {
		case *pgproto3.Terminate:
			return nil
		case *pgproto3.Query:
			b.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT 0")})
			b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		case *pgproto3.Parse:
			b.Send(&pgproto3.ParseComplete{})
		case *pgproto3.Bind:
			b.Send(&pgproto3.BindComplete{})
		case *pgproto3.Describe:
			if m.ObjectType == 'S' {
				b.Send(&pgproto3.ParameterDescription{})
			}
			b.Send(&pgproto3.NoData{})
		case *pgproto3.Execute:
			b.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT 0")})
		case *pgproto3.Close:
			b.Send(&pgproto3.CloseComplete{})
		case *pgproto3.Sync:
			b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		}
	}
}

// traced is a connection to nothing. It is closed when the test ends.
func traced(t *testing.T, tracer *Tracer, mode pgx.QueryExecMode) *pgx.Conn {
	t.Helper()
	config, err := pgx.ParseConfig("host=nowhere.invalid user=u database=d sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	config.Tracer, config.DefaultQueryExecMode = tracer, mode
	config.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"192.0.2.1"}, nil }
	config.DialFunc = func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			ended <- nothing(server)
		}()
		return client, nil
	}
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	})
	return conn
}

func TestTracerNotesEachTextOnceWhicheverWayItIsSent(t *testing.T) {
	t.Parallel()
	tracer := &Tracer{}
	conn := traced(t, tracer, pgx.QueryExecModeExec)
	ctx := t.Context()
	for range 2 {
		if _, err := conn.Exec(ctx, "SELECT 1"); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Exec(ctx, "LISTEN a; SELECT 2"); err != nil {
			t.Fatal(err)
		}
		rows, err := conn.Query(ctx, "SELECT nextval($1)", "s")
		if err != nil {
			t.Fatal(err)
		}
		rows.Close()
		if err := conn.QueryRow(ctx, "SELECT 3").Scan(); !errors.Is(err, pgx.ErrNoRows) {
			t.Fatal(err)
		}
		var batch pgx.Batch
		batch.Queue("SELECT 4")
		batch.Queue("SELECT pg_notify($1, $2)", "a", "b")
		if err := conn.SendBatch(ctx, &batch).Close(); err != nil {
			t.Fatal(err)
		}
		tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.Serializable, AccessMode: pgx.ReadOnly})
		if err != nil {
			t.Fatal(err)
		}
		if err := tx.Rollback(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Exec(ctx, "SELEC 1"); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"SELECT 1", "LISTEN a; SELECT 2", "SELECT nextval($1)", "SELECT 3", "SELECT 4", "SELECT pg_notify($1, $2)",
		"begin isolation level serializable read only", "rollback", "SELEC 1",
	}
	if diff := cmp.Diff(want, tracer.Texts()); diff != "" {
		t.Error(diff)
	}
	var got []string
	for _, b := range tracer.Breaches() {
		got = append(got, b.String())
	}
	want = []string{
		`LISTEN (pins): "LISTEN a; SELECT 2"`,
		`nextval() (pins): "SELECT nextval($1)"`,
		`pg_notify(): "SELECT pg_notify($1, $2)"`,
		`parse statement: syntax error at or near "SELEC": "SELEC 1"`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestNamedStatementsAreBreachesUnlessTheyAreWanted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		mode pgx.QueryExecMode
		want []string
	}{
		{pgx.QueryExecModeExec, nil},
		{pgx.QueryExecModeDescribeExec, nil},
		{pgx.QueryExecModeCacheDescribe, nil},
		{pgx.QueryExecModeCacheStatement, []string{"named statement"}},
	} {
		for _, wanted := range []bool{false, true} {
			tracer := &Tracer{NamedStatements: wanted}
			conn := traced(t, tracer, c.mode)
			rows, err := conn.Query(t.Context(), "SELECT 5")
			if err != nil {
				t.Fatal(err)
			}
			rows.Close()
			var got []string
			for _, b := range tracer.Breaches() {
				got = append(got, marked(b.Findings)...)
			}
			want := c.want
			if wanted {
				want = nil
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%v, wanted %v: %s", c.mode, wanted, diff)
			}
			if diff := cmp.Diff([]string{"SELECT 5"}, tracer.Texts()); diff != "" {
				t.Errorf("%v: %s", c.mode, diff)
			}
		}
	}
}
