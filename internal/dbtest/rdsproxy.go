package dbtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/pithworks/pith/internal/localpg"
	"github.com/pithworks/pith/internal/rdsproxy"
)

// The user of the stand-in's clients, and its secret, which the server does not
// ask for.
const (
	proxyUser   = "pith"
	proxySecret = "not a secret"
)

// proxy is the stand-in for Amazon RDS Proxy in this process.
type proxy struct {
	cfg      rdsproxy.Config
	addr     string // stays the same over restarts
	findings findings

	mu      sync.Mutex // guards what follows, held while the proxy changes
	running *rdsproxy.Running
}

// findings are what was found in the statements to each database. A test takes
// those to its own.
type findings struct {
	mu   sync.Mutex
	list map[string][]rdsproxy.Finding
}

func (f *findings) add(one rdsproxy.Finding) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list[one.Database] = append(f.list[one.Database], one)
}

// take returns and forgets what was found in the statements to a database.
func (f *findings) take(database string) []rdsproxy.Finding {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := f.list[database]
	delete(f.list, database)
	return list
}

// left returns an error that names what no test has taken.
func (f *findings) left() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for database, list := range f.list {
		for _, one := range slices.Compact(list) {
			errs = append(errs, fmt.Errorf("database %s: %s", database, told(one)))
		}
	}
	return errors.Join(errs...)
}

// told says what RDS Proxy makes of a statement.
func told(f rdsproxy.Finding) string {
	does := "is not promised"
	if f.Pinned {
		does = "pins"
	}
	return fmt.Sprintf("behind RDS Proxy %s %s: %s", f.Construct, does, f.Statement)
}

func startProxy(ctx context.Context, server *localpg.Server, size int) (*proxy, error) {
	p := &proxy{findings: findings{list: map[string][]rdsproxy.Finding{}}}
	p.cfg = rdsproxy.Config{
		Upstream:  server.URL("postgres"),
		Users:     map[string]string{proxyUser: proxySecret},
		PoolSize:  size,
		OnFinding: p.findings.add,
	}
	if err := p.Restart(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *proxy) URL(database string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running.URL(proxyUser, database)
}

func (p *proxy) AdminURL() string { return "" }

func (p *proxy) Kill() { p.Stop() }

func (p *proxy) Restart(ctx context.Context) error {
	p.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	running, err := rdsproxy.Start(ctx, p.addr, p.cfg)
	if err != nil {
		return err
	}
	p.running, p.addr = running, running.Addr().String()
	return nil
}

func (p *proxy) Stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running == nil {
		return
	}
	if err := p.running.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "dbtest: stand-in for RDS Proxy:", err)
	}
}

// checkPins fails a test for each statement that RDS Proxy would pin for, or does
// not promise to carry.
func (s *Services) checkPins(t testing.TB, database string) {
	t.Helper()
	p, ok := s.Pooler.(*proxy)
	if !ok {
		return
	}
	for _, f := range slices.Compact(p.findings.take(database)) {
		t.Error(told(f))
	}
}

// checkSent fails a test for each statement of its pool that the pooler contract
// forbids.
func (db *DB) checkSent(t testing.TB) {
	t.Helper()
	if raceDetector {
		return
	}
	for _, b := range db.sent.Breaches() {
		t.Errorf("sent through the pool: %s", b)
	}
}
