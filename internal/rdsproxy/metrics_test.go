package rdsproxy

import (
	"encoding/json"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5/pgconn"
)

func TestMetricsCount(t *testing.T) {
	t.Parallel()
	server(t)
	p := startProxy(t, Config{PoolSize: 3, TLS: serverTLS(t)})
	left := p.connect(t)
	hangUp(t, left)
	if _, err := pgconn.Connect(deadline(t), p.url("by_scram", "sslmode=disable")); err == nil {
		t.Error("unknown user was let in")
	}
	plain, open, pinned := p.wire(t), p.wire(t), p.wire(t)
	secure := openWire(t, p.url("pith", "sslmode=require"))
	plain.sql("SELECT 1")
	plain.send(append(append(run("SELECT 2"), run("SELECT 3")...), syncMsg)...)
	plain.answer('Z', 1)
	open.sql("BEGIN")
	pinned.sql("SET work_mem = '1MB'")
	secure.sql("SELECT 1")
	// The two that closed have ended once their sessions are counted, and a client may have its answer
	// before its connection is back.
	ctx := deadline(t)
	got := p.Metrics()
	for ; got.ClientConnectionsClosed < 2 || got.DatabaseConnectionsCurrentlyBorrowed > 2; got = p.Metrics() {
		select {
		case <-p.changed:
		case <-ctx.Done():
			t.Fatalf("clients that left are not counted, or connections not given back: %+v", got)
		}
	}
	want := Metrics{
		ClientConnections:                         4,
		ClientConnectionsClosed:                   2,
		ClientConnectionsNoTLS:                    5,
		ClientConnectionsReceived:                 6,
		ClientConnectionsSetupFailedAuth:          1,
		ClientConnectionsSetupSucceeded:           5,
		ClientConnectionsTLS:                      1,
		DatabaseConnectionRequests:                3,
		DatabaseConnections:                       3,
		DatabaseConnectionsCurrentlyBorrowed:      2,
		DatabaseConnectionsCurrentlyInTransaction: 1,
		DatabaseConnectionsCurrentlySessionPinned: 1,
		DatabaseConnectionsSetupSucceeded:         3,
		MaxDatabaseConnectionsAllowed:             3,
		QueryRequests:                             6,
		QueryRequestsNoTLS:                        5,
		QueryRequestsTLS:                          1,
	}
	latencies := cmpopts.IgnoreFields(Metrics{}, "DatabaseConnectionsBorrowLatency", "QueryDatabaseResponseLatency", "QueryResponseLatency")
	if diff := cmp.Diff(want, got, latencies); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
	if got.DatabaseConnectionsBorrowLatency <= 0 || got.QueryDatabaseResponseLatency <= 0 || got.QueryResponseLatency < got.QueryDatabaseResponseLatency {
		t.Errorf("latencies %v, %v, %v", got.DatabaseConnectionsBorrowLatency, got.QueryDatabaseResponseLatency, got.QueryResponseLatency)
	}
}

// TestMetricsAreNamedAsTheOriginals compares with the list in AWS's documentation,
// less what has no meaning here.
func TestMetricsAreNamedAsTheOriginals(t *testing.T) {
	t.Parallel()
	b, err := json.Marshal(Metrics{})
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]float64
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"ClientConnections", "ClientConnectionsClosed", "ClientConnectionsNoTLS", "ClientConnectionsReceived",
		"ClientConnectionsSetupFailedAuth", "ClientConnectionsSetupSucceeded", "ClientConnectionsTLS",
		"DatabaseConnectionRequests", "DatabaseConnectionRequestsWithTLS", "DatabaseConnections",
		"DatabaseConnectionsBorrowLatency", "DatabaseConnectionsCurrentlyBorrowed",
		"DatabaseConnectionsCurrentlyInTransaction", "DatabaseConnectionsCurrentlySessionPinned",
		"DatabaseConnectionsSetupFailed", "DatabaseConnectionsSetupSucceeded", "DatabaseConnectionsWithTLS",
		"MaxDatabaseConnectionsAllowed", "QueryDatabaseResponseLatency", "QueryRequests", "QueryRequestsNoTLS",
		"QueryRequestsTLS", "QueryResponseLatency",
	}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(m))); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}
