package rdsproxy

import (
	"sync/atomic"
	"time"
)

// Metrics are the proxy's numbers under the names that the original gives them in
// Amazon CloudWatch. Counts are since New. The original's averages cover a period,
// ours everything since New.
//
// Source: "Monitoring RDS Proxy metrics with Amazon CloudWatch" in the Amazon RDS
// User Guide. AvailabilityPercentage has no meaning here.
type Metrics struct {
	// ClientConnections is the number of clients that are connected.
	ClientConnections int64
	// ClientConnectionsClosed counts clients that left or were closed.
	ClientConnectionsClosed int64
	// ClientConnectionsNoTLS counts clients that came without TLS.
	ClientConnectionsNoTLS int64
	// ClientConnectionsReceived counts clients that connected.
	ClientConnectionsReceived int64
	// ClientConnectionsSetupFailedAuth counts clients that failed to authenticate.
	ClientConnectionsSetupFailedAuth int64
	// ClientConnectionsSetupSucceeded counts clients that could send queries.
	ClientConnectionsSetupSucceeded int64
	// ClientConnectionsTLS counts clients that came with TLS.
	ClientConnectionsTLS int64

	// DatabaseConnectionRequests counts attempts to connect to the server.
	DatabaseConnectionRequests int64
	// DatabaseConnectionRequestsWithTLS counts those attempts that asked for TLS.
	DatabaseConnectionRequestsWithTLS int64
	// DatabaseConnections is the number of server connections.
	DatabaseConnections int64
	// DatabaseConnectionsBorrowLatency is the average time to get a server
	// connection, in microseconds.
	DatabaseConnectionsBorrowLatency float64
	// DatabaseConnectionsCurrentlyBorrowed is the number of server connections that
	// clients have.
	DatabaseConnectionsCurrentlyBorrowed int64
	// DatabaseConnectionsCurrentlyInTransaction is the number of server connections
	// with an open transaction.
	DatabaseConnectionsCurrentlyInTransaction int64
	// DatabaseConnectionsCurrentlySessionPinned is the number of server connections
	// that their clients keep.
	DatabaseConnectionsCurrentlySessionPinned int64
	// DatabaseConnectionsSetupFailed counts attempts to connect that failed.
	DatabaseConnectionsSetupFailed int64
	// DatabaseConnectionsSetupSucceeded counts attempts to connect that succeeded.
	DatabaseConnectionsSetupSucceeded int64
	// DatabaseConnectionsWithTLS is the number of server connections with TLS.
	DatabaseConnectionsWithTLS int64

	// MaxDatabaseConnectionsAllowed is the number of server connections for each user
	// and database.
	MaxDatabaseConnectionsAllowed int64

	// QueryDatabaseResponseLatency is the average time that the server took for what
	// was sent up to a ReadyForQuery, in microseconds.
	QueryDatabaseResponseLatency float64
	// QueryRequests counts Query and Execute messages.
	QueryRequests int64
	// QueryRequestsNoTLS counts those that came without TLS.
	QueryRequestsNoTLS int64
	// QueryRequestsTLS counts those that came with TLS.
	QueryRequestsTLS int64
	// QueryResponseLatency is QueryDatabaseResponseLatency with the time to get a
	// server connection.
	QueryResponseLatency float64
}

// counters are the numbers that are counted as things happen.
type counters struct {
	clients, clientsClosed, clientsReceived, clientsFailedAuth, clientsSucceeded atomic.Int64
	clientsTLS, clientsNoTLS                                                     atomic.Int64
	dials, dialsTLS, dialsFailed, dialsSucceeded                                 atomic.Int64
	queriesTLS, queriesNoTLS                                                     atomic.Int64
	borrow, response, database                                                   average
}

// An average is one of durations.
type average struct{ sum, count atomic.Int64 }

func (a *average) add(d time.Duration) {
	a.sum.Add(int64(d))
	a.count.Add(1)
}

func (a *average) microseconds() float64 {
	n := a.count.Load()
	if n == 0 {
		return 0
	}
	return float64(a.sum.Load()) / float64(n) / float64(time.Microsecond)
}

// Metrics returns the numbers as they are now.
func (p *Proxy) Metrics() Metrics {
	c := &p.counters
	m := Metrics{
		ClientConnections:                 c.clients.Load(),
		ClientConnectionsClosed:           c.clientsClosed.Load(),
		ClientConnectionsNoTLS:            c.clientsNoTLS.Load(),
		ClientConnectionsReceived:         c.clientsReceived.Load(),
		ClientConnectionsSetupFailedAuth:  c.clientsFailedAuth.Load(),
		ClientConnectionsSetupSucceeded:   c.clientsSucceeded.Load(),
		ClientConnectionsTLS:              c.clientsTLS.Load(),
		DatabaseConnectionRequests:        c.dials.Load(),
		DatabaseConnectionRequestsWithTLS: c.dialsTLS.Load(),
		DatabaseConnectionsBorrowLatency:  c.borrow.microseconds(),
		DatabaseConnectionsSetupFailed:    c.dialsFailed.Load(),
		DatabaseConnectionsSetupSucceeded: c.dialsSucceeded.Load(),
		MaxDatabaseConnectionsAllowed:     int64(p.cfg.PoolSize),
		QueryDatabaseResponseLatency:      c.database.microseconds(),
		QueryRequestsNoTLS:                c.queriesNoTLS.Load(),
		QueryRequestsTLS:                  c.queriesTLS.Load(),
		QueryResponseLatency:              c.response.microseconds(),
	}
	m.QueryRequests = m.QueryRequestsTLS + m.QueryRequestsNoTLS
	for _, sc := range p.serverConns() {
		sc.mu.Lock()
		m.DatabaseConnections++
		if sc.tls {
			m.DatabaseConnectionsWithTLS++
		}
		if sc.client != nil {
			m.DatabaseConnectionsCurrentlyBorrowed++
		}
		if sc.tx != 'I' {
			m.DatabaseConnectionsCurrentlyInTransaction++
		}
		if sc.client != nil && sc.pinned { // also those whose answers are uncertain
			m.DatabaseConnectionsCurrentlySessionPinned++
		}
		sc.mu.Unlock()
	}
	return m
}

// serverConns returns all server connections.
func (p *Proxy) serverConns() []*serverConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []*serverConn
	for _, pl := range p.pools {
		pl.mu.Lock()
		for sc := range pl.all {
			all = append(all, sc)
		}
		pl.mu.Unlock()
	}
	return all
}
