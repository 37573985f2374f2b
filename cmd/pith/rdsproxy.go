package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/url"
	"sync"

	"github.com/pithworks/pith/internal/rdsproxy"
)

type rdsproxyCmd struct {
	Listen   string `default:"127.0.0.1:6432" placeholder:"HOST:PORT" help:"Where clients connect."`
	PoolSize int    `name:"pool-size" default:"20" help:"Server connections for each user and database."`
}

// Help is shown below the usage.
func (rdsproxyCmd) Help() string {
	return "It multiplexes the clients of any program over few connections to --database-url, as Amazon RDS Proxy does, and applies " +
		"its pinning rules to each statement. Ctrl-C ends it with a report. The exit status is 1 if a session was pinned. " +
		"It is for tests: it offers no TLS."
}

// verdict is what the stand-in has seen.
type verdict struct {
	// Pins counts statements that pin, NotPromised others that AWS does not promise to carry.
	Pins        int              `json:"pins"`
	NotPromised int              `json:"not_promised"`
	Findings    []finding        `json:"findings"`
	Metrics     rdsproxy.Metrics `json:"metrics"`
}

// finding is a construct in a statement, and how often it came.
type finding struct {
	Construct string `json:"construct"`
	Pins      bool   `json:"pins"`
	Statement string `json:"statement"`
	Database  string `json:"database"`
	Times     int    `json:"times"`
}

// mostFindings bounds the different findings of a report.
const mostFindings = 1000

// tally counts findings.
type tally struct {
	mu   sync.Mutex
	seen verdict
	at   map[rdsproxy.Finding]int // index in seen.Findings
}

func newTally() *tally {
	return &tally{at: map[rdsproxy.Finding]int{}, seen: verdict{Findings: []finding{}}}
}

// add counts a finding and tells whether it is new.
func (t *tally) add(f rdsproxy.Finding) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f.Pinned {
		t.seen.Pins++
	} else {
		t.seen.NotPromised++
	}
	i, known := t.at[f]
	if !known {
		if len(t.at) == mostFindings {
			return false
		}
		i = len(t.seen.Findings)
		t.at[f] = i
		t.seen.Findings = append(t.seen.Findings, finding{Construct: f.Construct, Pins: f.Pinned, Statement: f.Statement, Database: f.Database})
	}
	t.seen.Findings[i].Times++
	return !known
}

// finding logs what is found for the first time.
func (s *session) finding(t *tally) func(rdsproxy.Finding) {
	return func(f rdsproxy.Finding) {
		if t.add(f) {
			s.log.Warn("not safe behind rds proxy", "construct", f.Construct, "pins", f.Pinned, "statement", f.Statement, "database", f.Database)
		}
	}
}

// Run runs the command.
func (c rdsproxyCmd) Run(ctx context.Context, s *session) error {
	ctx, stop := interruptible(ctx)
	defer stop()
	if c.PoolSize < 1 {
		return usage("--pool-size %d: at least one is needed", c.PoolSize)
	}
	if s.cli.PasswordCommand != "" {
		return usage("--password-command: the stand-in's password does not change; give it in the URL, or in PGPASSWORD")
	}
	p, err := s.open(ctx) // a URL that cannot be used is said at once
	if err != nil {
		return err
	}
	p.Close()
	count := newTally()
	up := p.Config().ConnConfig
	// Clients log in with the password of the database, which is not shown; without one, with the user's name.
	secret := cmp.Or(up.Password, up.User)
	proxy, err := rdsproxy.Start(ctx, c.Listen, rdsproxy.Config{
		Upstream: s.cli.DatabaseURL, Users: map[string]string{up.User: secret}, PoolSize: c.PoolSize, Log: s.log, OnFinding: s.finding(count),
	})
	if err != nil {
		return usage("--listen %s: %v", c.Listen, err)
	}
	fmt.Fprintf(s.err, "clients may connect: %s\n", shown(proxy.URL(up.User, up.Database), up.Password))
	select {
	case <-ctx.Done():
	case <-proxy.Done():
	}
	seen := proxy.Metrics()
	if err := proxy.Stop(); err != nil {
		return err
	}
	v := count.seen
	v.Metrics = seen
	if err := s.print(v, v.text); err != nil {
		return err
	}
	if v.Pins > 0 {
		return statusError(exitFailure) // the report says why
	}
	return nil
}

// shown is a URL for people: with the password only if it is not the database's own.
func shown(address, secret string) string {
	u, err := url.Parse(address)
	if err != nil || secret == "" {
		return address
	}
	u.User = url.User(u.User.Username())
	return u.String() + " with the database's password"
}

func (v verdict) text(w io.Writer) {
	fmt.Fprintf(w, "%d statements pinned their session, %d are not promised to work; %d queries of %d clients over %d server connections\n",
		v.Pins, v.NotPromised, v.Metrics.QueryRequests, v.Metrics.ClientConnectionsSetupSucceeded, v.Metrics.DatabaseConnectionsSetupSucceeded)
	if len(v.Findings) == 0 {
		return
	}
	row(w, "TIMES", "PINS", "CONSTRUCT", "STATEMENT")
	for _, f := range v.Findings {
		pins := "no"
		if f.Pins {
			pins = "yes"
		}
		row(w, fmt.Sprint(f.Times), pins, f.Construct, f.Statement)
	}
}
