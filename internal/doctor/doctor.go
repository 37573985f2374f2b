// Package doctor looks at a database, the way to it, and the fleet that works on it, and says what is
// wrong and what to do about it.
//
// It only reads. It keeps to the contract with a transaction pooler as everything else does: single
// statements, unnamed, nothing left on a server connection. The one exception is the probe of named
// statements, which runs only where they are configured or asked for; see [Config.ProbeStatements].
//
// A check that fails is a finding, not the end: what the role may not see is said, and the rest is
// looked at.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/pool"
)

// Severity says how bad a finding is.
type Severity string

// The severities, the least first.
const (
	// OK: looked at, and nothing to do.
	OK Severity = "ok"
	// Note: worth knowing.
	Note Severity = "note"
	// Warning: works, but not well, not for long, or not for all tasks.
	Warning Severity = "warning"
	// Error: does not work, or not rightly.
	Error Severity = "error"
)

func (s Severity) rank() int {
	switch s {
	case Error:
		return 3
	case Warning:
		return 2
	case Note:
		return 1
	default:
		return 0
	}
}

// A Finding is what one check has to say. A check has one finding, or several.
type Finding struct {
	// Check is the check's name; names don't change.
	Check    string   `json:"check"`
	Severity Severity `json:"severity"`
	// Message is for people, in one line.
	Message string `json:"message"`
	// Remedy says what to do; empty where there is nothing to do.
	Remedy string `json:"remedy,omitempty"`
}

// Connection is what stands between the program and PostgreSQL.
type Connection string

// What can be told apart.
const (
	// Direct: each client connection is a server connection. Something that only passes bytes on, such
	// as a load balancer, cannot be told from nothing.
	Direct Connection = "direct"
	// Session: something answers in the server's place, but was not seen to share server connections.
	Session Connection = "session"
	// Transaction: client connections share server connections.
	Transaction Connection = "transaction"
)

// Target is what was looked at.
type Target struct {
	// Address is the host and the port: those that answered, if the URL names several.
	Address  string `json:"address"`
	Database string `json:"database"`
	// Role is whom PostgreSQL takes the program for.
	Role string `json:"role"`
	// Version is PostgreSQL's.
	Version    string     `json:"version"`
	Connection Connection `json:"connection"`
}

// Report is the result.
type Report struct {
	Target Target `json:"target"`
	// Severity is that of the worst finding.
	Severity Severity  `json:"severity"`
	Findings []Finding `json:"findings"`
}

// Config says what to do beyond looking.
type Config struct {
	// ProbeStatements makes named statements, to see whether the pooler keeps those of its clients apart;
	// it closes them again. A pool that sends named statements is probed in any case. Behind Amazon RDS
	// Proxy the probe may pin its connections until they are closed; behind a busy pooler that does not
	// track them it may leave one on a server connection, and says so. Default: false.
	ProbeStatements bool
	// Timeout bounds each check. Default: 10 s.
	Timeout time.Duration
}

// Doctor looks at one database.
type Doctor struct {
	base   *pgxpool.Pool
	cfg    Config
	limits limits
	now    func() time.Time
}

// limits are from where on a thing is worth a warning.
type limits struct {
	transaction  time.Duration // age of a transaction
	transactions int64         // the same, in transactions that began since
	dead         int64         // dead rows of a hot table, at least
	ratio        float64       // dead rows, in multiples of what makes autovacuum start
	skew         time.Duration // of the clocks
	late         time.Duration // what the fleet's duties may be late by
}

// New validates the configuration; it sends nothing. The pool says where the database is; its
// connections are not used, and it may be closed.
func New(p *pgxpool.Pool, cfg Config) (*Doctor, error) {
	if cfg.Timeout < 0 {
		return nil, fmt.Errorf("timeout %s is negative", cfg.Timeout)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	return &Doctor{base: p, cfg: cfg, now: time.Now, limits: limits{
		transaction: 5 * time.Minute, transactions: 1_000_000, dead: 10_000, ratio: 3, skew: 5 * time.Second,
		late: 30 * time.Second,
	}}, nil
}

// examination is one run.
type examination struct {
	*Doctor
	q    *db.Queries
	pool *pgxpool.Pool // one connection is in use at a time

	target   Target
	hosts    hosts
	host     string  // of the target, as the URL names it
	own      []int32 // server processes that answered; ours, unless a pooler multiplexes
	server   db.DoctorServerRow
	settings map[string]db.DoctorSettingsRow
	foreign  bool            // the schema is of another version than this binary needs
	failed   map[string]bool // checks that others cannot do without
}

// A check adds what it finds; an error means that it could not look.
type check struct {
	name string
	look func(*examination, context.Context, *findings) error
	// needs is the check that this one cannot do without.
	needs string
}

// checks are in the order of the report.
var checks = []check{
	{name: "connection", look: (*examination).lookAtConnection},
	{name: "version", look: (*examination).lookAtVersion},
	{name: "statements", look: (*examination).lookAtStatements},
	{name: "visibility", look: (*examination).lookAtVisibility, needs: "version"},
	{name: "encoding", look: (*examination).lookAtEncoding, needs: "version"},
	{name: "transactions", look: (*examination).lookAtTransactions, needs: "version"},
	{name: "timeouts", look: (*examination).lookAtTimeouts, needs: "version"},
	{name: "durability", look: (*examination).lookAtDurability, needs: "version"},
	{name: "leaks", look: (*examination).lookAtLeaks, needs: "version"},
	{name: "clock", look: (*examination).lookAtClock},
	{name: "schema", look: (*examination).lookAtSchema, needs: "version"},
	{name: "drift", look: (*examination).lookAtDrift, needs: "schema"},
	{name: "privileges", look: (*examination).lookAtPrivileges, needs: "version"},
	{name: "capacity", look: (*examination).lookAtCapacity, needs: "schema"},
	{name: "dead_rows", look: (*examination).lookAtDeadRows, needs: "schema"},
	{name: "old_snapshots", look: (*examination).lookAtOldSnapshots},
	{name: "workers", look: (*examination).lookAtWorkers, needs: "schema"},
	{name: "missing", look: (*examination).lookAtMissing, needs: "schema"},
	{name: "unrunnable", look: (*examination).lookAtUnrunnable, needs: "schema"},
}

// ErrNoAnswer means that the database did not answer within the time that a check has.
var ErrNoAnswer = errors.New("no answer in time")

// Run looks at everything once. An error means that the database does not answer a single client
// (in time: [ErrNoAnswer]), or that ctx has ended; whatever else fails is in the report.
func (d *Doctor) Run(ctx context.Context) (Report, error) {
	// Statements are unnamed here, whatever the program's own pool does.
	c := d.base.Config()
	c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	// The others take the place of one that is given up, until that is closed.
	c.MaxConns, c.MinConns, c.MinIdleConns = 4, 0, 0
	x := &examination{Doctor: d, q: db.New(), failed: map[string]bool{}}
	c.BeforeClose = abandon
	c.ConnConfig.LookupFunc = x.hosts.remember(c.ConnConfig.LookupFunc)
	p, err := pool.OpenConfig(ctx, c)
	if err != nil {
		return Report{}, fmt.Errorf("doctor: %w", err)
	}
	defer p.Close()
	x.pool = p
	found := &findings{}
	for i, c := range checks {
		found.check = c.name
		if x.failed[c.needs] {
			x.failed[c.name] = true
			found.add(Note, "", "was not looked at: see %s", c.needs)
			continue
		}
		limited, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
		err := c.look(x, limited, found)
		late := limited.Err() != nil
		cancel()
		switch {
		case ctx.Err() != nil:
			return Report{}, fmt.Errorf("doctor: %w", ctx.Err())
		case err != nil && i == 0 && late:
			return Report{}, fmt.Errorf("doctor: %w: %w", ErrNoAnswer, err)
		case err != nil && i == 0:
			return Report{}, fmt.Errorf("doctor: %w", err)
		case err != nil:
			found.unseen(err, d.cfg.Timeout)
			if slices.ContainsFunc(checks, func(o check) bool { return o.needs == c.name }) {
				x.failed[c.name] = true
				found.list[len(found.list)-1].Severity = Error
			}
		}
	}
	r := Report{Target: x.target, Severity: OK, Findings: found.list}
	for _, f := range r.Findings {
		if f.Severity.rank() > r.Severity.rank() {
			r.Severity = f.Severity
		}
	}
	return r, nil
}

// findings collects what the checks find.
type findings struct {
	check string
	list  []Finding
}

func (f *findings) add(severity Severity, remedy, format string, args ...any) {
	f.list = append(f.list, Finding{Check: f.check, Severity: severity, Message: fmt.Sprintf(format, args...), Remedy: remedy})
}

// ok says that there is nothing to do, unless something worse was found by the same check.
func (f *findings) ok(format string, args ...any) {
	if n := len(f.list); n > 0 && f.list[n-1].Check == f.check {
		return
	}
	f.add(OK, "", format, args...)
}

// PostgreSQL's codes for what may keep a check from looking.
const (
	insufficientPrivilege = "42501"
	queryCanceled         = "57014"
)

// unseen says that the check could not look.
func (f *findings) unseen(err error, timeout time.Duration) {
	var pg *pgconn.PgError
	switch isPg := errors.As(err, &pg); {
	case isPg && pg.Code == insufficientPrivilege:
		f.add(Note, "run it as a role that may, such as the one of the workers", "could not be looked at: %s", pg.Message)
	case errors.Is(err, context.DeadlineExceeded), isPg && pg.Code == queryCanceled:
		f.add(Warning, "see what the database is busy with: pg_stat_activity, pg_locks", "could not be looked at within %s", timeout)
	case isPg:
		f.add(Warning, "", "could not be looked at: %s", pg.Message)
	default:
		f.add(Warning, "", "could not be looked at: %v", err)
	}
}
