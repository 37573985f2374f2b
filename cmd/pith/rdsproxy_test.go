package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pithworks/pith/internal/dbtest"
)

func TestStandInReportsWhatPins(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, statement string
		code, pins      int
		constructs      []string
	}{
		{"nothing", "SELECT 'LISTEN a'", exitOK, 0, nil},
		{"a pin", "LISTEN a", exitFailure, 2, []string{"LISTEN"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := dbtest.New(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			reader, writer := io.Pipe()
			var out bytes.Buffer
			code := make(chan int, 1)
			go func() {
				code <- run(ctx, []string{"rdsproxy", "--database-url", db.DirectURL, "--listen=127.0.0.1:0", "--output=json"}, nil, &out, writer, environ(""))
				_ = writer.Close() // never fails
			}()
			lines := bufio.NewScanner(reader)
			var url string
			for found := false; !found && lines.Scan(); {
				_, url, found = strings.Cut(lines.Text(), "clients may connect: ")
			}
			go func() { _, _ = io.Copy(io.Discard, reader) }()
			for range 2 {
				conn, err := pgx.Connect(t.Context(), url)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := conn.Exec(t.Context(), tt.statement); err != nil {
					t.Error(err)
				}
				if err := conn.Close(t.Context()); err != nil {
					t.Error(err)
				}
			}
			cancel()
			if got := <-code; got != tt.code {
				t.Errorf("status %d, want %d", got, tt.code)
			}
			var v verdict
			if err := json.Unmarshal(out.Bytes(), &v); err != nil {
				t.Fatalf("%v: %s", err, &out)
			}
			if v.Pins != tt.pins || v.NotPromised != 0 || len(v.Findings) != len(tt.constructs) || v.Metrics.ClientConnectionsSetupSucceeded != 2 {
				t.Errorf("verdict is %+v", v)
			}
			for i, f := range v.Findings {
				if f.Construct != tt.constructs[i] || !f.Pins || f.Statement != tt.statement || f.Database != db.Name || f.Times != tt.pins {
					t.Errorf("finding is %+v", f)
				}
			}
		})
	}
}

func TestStandInShowsNoPasswordOfTheDatabase(t *testing.T) {
	t.Parallel()
	const address = "postgres://pith:s3cret@127.0.0.1:6432/pulp?sslmode=disable"
	if got := shown(address, "s3cret"); got != "postgres://pith@127.0.0.1:6432/pulp?sslmode=disable with the database's password" {
		t.Errorf("shown is %s", got)
	}
	if got := shown(address, ""); got != address {
		t.Errorf("shown is %s", got)
	}
}

func TestStandInRefusesWhatItCannotUse(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	pith(t, db.DirectURL, "rdsproxy", "--pool-size=0").wants(t, exitUsage, "--pool-size 0")
	pith(t, db.DirectURL, "rdsproxy", "--listen=nowhere").wants(t, exitUsage, "--listen nowhere")
	pith(t, db.DirectURL, "rdsproxy", "--password-command=echo x").wants(t, exitUsage, "--password-command")
	pith(t, "", "rdsproxy").wants(t, exitUsage, "PITH_DATABASE_URL")
}
