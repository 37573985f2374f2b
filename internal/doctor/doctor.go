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
	// Address is the host and the port.
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
	// Proxy the probe may pin its connections until they are closed. Default: false.
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
}

// New validates the configuration; it sends nothing. The pool says where the database is.
func New(p *pgxpool.Pool, cfg Config) (*Doctor, error) {
	if cfg.Timeout < 0 {
		return nil, fmt.Errorf("timeout %s is negative", cfg.Timeout)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	return &Doctor{base: p, cfg: cfg, now: time.Now, limits: limits{
		transaction: 5 * time.Minute, transactions: 1_000_000, dead: 10_000, ratio: 3, skew: 5 * time.Second,
	}}, nil
}

// clients is how many client connections are looked through, as many as a worker's pool has.
const clients = 4

// examination is one run.
type examination struct {
	*Doctor
	q    *db.Queries
	pool *pgxpool.Pool

	target   Target
	server   db.DoctorServerRow
	settings map[string]db.DoctorSettingsRow
	foreign  bool // the schema is not the one that this binary needs
}

// A check adds what it finds; an error means that it could not look.
type check struct {
	name string
	look func(*examination, context.Context, *findings) error
	// onSchema: needs Pith's tables
	onSchema bool
}

// checks are in the order of the report. The first two tell what the others rely on.
var checks = []check{
	{name: "connection", look: (*examination).lookAtConnection},
	{name: "version", look: (*examination).lookAtVersion},
	{name: "statements", look: (*examination).lookAtStatements},
	{name: "visibility", look: (*examination).lookAtVisibility},
	{name: "encoding", look: (*examination).lookAtEncoding},
	{name: "transactions", look: (*examination).lookAtTransactions},
	{name: "timeouts", look: (*examination).lookAtTimeouts},
	{name: "durability", look: (*examination).lookAtDurability},
	{name: "leaks", look: (*examination).lookAtLeaks},
	{name: "clock", look: (*examination).lookAtClock},
	{name: "schema", look: (*examination).lookAtSchema},
	{name: "drift", look: (*examination).lookAtDrift, onSchema: true},
	{name: "privileges", look: (*examination).lookAtPrivileges, onSchema: true},
	{name: "capacity", look: (*examination).lookAtCapacity, onSchema: true},
	{name: "dead_rows", look: (*examination).lookAtDeadRows, onSchema: true},
	{name: "old_snapshots", look: (*examination).lookAtOldSnapshots},
	{name: "workers", look: (*examination).lookAtWorkers, onSchema: true},
	{name: "missing", look: (*examination).lookAtMissing, onSchema: true},
	{name: "unrunnable", look: (*examination).lookAtUnrunnable, onSchema: true},
}

// Run looks at everything once. An error means that the database cannot be reached, or that ctx has
// ended; whatever else fails is in the report.
func (d *Doctor) Run(ctx context.Context) (Report, error) {
	// Statements are unnamed here, whatever the program's own pool does.
	c := d.base.Config()
	c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	c.MaxConns, c.MinConns, c.MinIdleConns = clients, 0, 0
	p, err := pool.OpenConfig(ctx, c)
	if err != nil {
		return Report{}, fmt.Errorf("doctor: %w", err)
	}
	defer p.Close()
	x := &examination{Doctor: d, q: db.New(), pool: p}
	found := &findings{}
	for i, c := range checks {
		found.check = c.name
		if c.onSchema && x.foreign {
			continue
		}
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
			defer cancel()
			return c.look(x, ctx, found)
		}()
		switch {
		case ctx.Err() != nil:
			return Report{}, fmt.Errorf("doctor: %w", ctx.Err())
		case err != nil && i < 2:
			return Report{}, fmt.Errorf("doctor: %w", err)
		case err != nil:
			found.unseen(err, d.cfg.Timeout)
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
