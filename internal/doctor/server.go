package doctor

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pithworks/pith/db"
)

// The versions of PostgreSQL that Pith is tested with.
const (
	oldestMajor = 14
	newestMajor = 18
)

// asked are the settings that the checks look at.
var asked = []string{
	"autovacuum", "default_transaction_isolation", "default_transaction_read_only", "fsync", "full_page_writes",
	"idle_in_transaction_session_timeout", "idle_session_timeout", "lock_timeout", "quote_all_identifiers", "search_path", "session_replication_role",
	"statement_timeout", "synchronous_commit", "track_counts", "transaction_timeout",
}

func (x *examination) lookAtVersion(ctx context.Context, f *findings) (err error) {
	if x.server, err = x.q.DoctorServer(ctx, x.pool); err != nil {
		return err
	}
	rows, err := x.q.DoctorSettings(ctx, x.pool, asked)
	if err != nil {
		return err
	}
	x.settings = map[string]db.DoctorSettingsRow{}
	for _, r := range rows {
		x.settings[r.Name] = r
	}
	x.target.Database, x.target.Role, x.target.Version = x.server.Database, x.server.Role, x.server.Version
	version(f, x.server.Version, int(x.server.VersionNum)/10000)
	return nil
}

func version(f *findings, text string, major int) {
	switch {
	case major < oldestMajor:
		f.add(Error, fmt.Sprintf("use PostgreSQL %d to %d", oldestMajor, newestMajor), "PostgreSQL %s is too old", text)
	case major > newestMajor:
		f.add(Note, "", "PostgreSQL %s is newer than what this release was tested with (%d to %d)", text, oldestMajor, newestMajor)
	default:
		f.ok("PostgreSQL %s", text)
	}
}

func (x *examination) lookAtVisibility(_ context.Context, f *findings) error {
	if !x.server.SeesAll {
		f.add(Note, fmt.Sprintf("GRANT pg_read_all_stats TO %s", identifier(x.server.Role)),
			"role %s sees of other roles' sessions only that they are there: their states, and since when their transactions run, are hidden", x.server.Role)
	}
	f.ok("role %s sees all sessions", x.server.Role)
	return nil
}

func (x *examination) lookAtEncoding(_ context.Context, f *findings) error {
	if x.server.Encoding != "UTF8" {
		f.add(Error, "make the database with ENCODING 'UTF8' and migrate it", "the database's encoding is %s: not all texts can be stored", x.server.Encoding)
	}
	f.ok("UTF8")
	return nil
}

func (x *examination) lookAtTransactions(_ context.Context, f *findings) error {
	switch v := x.settings["default_transaction_isolation"].Setting; v {
	case "read committed", "read uncommitted":
	default:
		f.add(Error, x.alterRole("default_transaction_isolation", "read committed"),
			"default_transaction_isolation is %s%s: the queues' functions refuse to work", v, x.from("default_transaction_isolation"))
	}
	if x.server.InRecovery {
		f.add(Error, "connect to the primary", "the server is a standby, or still recovers: nothing can be written")
	}
	if x.settings["default_transaction_read_only"].Setting == "on" {
		f.add(Error, x.alterRole("default_transaction_read_only", "off"),
			"default_transaction_read_only is on%s: nothing can be written", x.from("default_transaction_read_only"))
	}
	if v := x.settings["session_replication_role"].Setting; v != "origin" {
		f.add(Error, x.alterRole("session_replication_role", "origin"),
			"session_replication_role is %s%s: foreign keys don't act, and tasks of missing processes are not freed", v, x.from("session_replication_role"))
	}
	f.ok("read committed, and can be written")
	return nil
}

// shortest is what a statement may need when many are waiting for the same queues.
const shortest = 5 * time.Second

func (x *examination) lookAtTimeouts(_ context.Context, f *findings) error {
	statement, idle := x.duration("statement_timeout"), x.duration("idle_in_transaction_session_timeout")
	switch {
	case statement == 0:
		f.add(Warning, x.alterRole("statement_timeout", "60s"),
			"statement_timeout is not set: what a client has given up goes on in the server, since not every pooler passes on a cancel request")
	case statement < shortest:
		f.add(Warning, x.alterRole("statement_timeout", "60s"),
			"statement_timeout is %s%s: a statement that waits for busy queues fails", statement, x.from("statement_timeout"))
	}
	if idle == 0 {
		f.add(Warning, x.alterRole("idle_in_transaction_session_timeout", "30s"),
			"idle_in_transaction_session_timeout is not set: a client that stops within its transaction keeps its locks, and the queues stand")
	}
	if d := x.duration("lock_timeout"); d > 0 {
		f.add(Note, x.alterRole("lock_timeout", "0"), "lock_timeout is %s%s: a statement that waits longer for a queue fails; statement_timeout is enough", d, x.from("lock_timeout"))
	}
	if d := x.duration("transaction_timeout"); d > 0 && d < shortest {
		f.add(Warning, x.alterRole("transaction_timeout", "60s"), "transaction_timeout is %s%s: a statement that waits for busy queues fails", d, x.from("transaction_timeout"))
	}
	if d := x.duration("idle_session_timeout"); d > 0 {
		f.add(Note, x.alterRole("idle_session_timeout", "0"), "idle_session_timeout is %s%s: idle connections are cut and made again", d, x.from("idle_session_timeout"))
	}
	f.ok("statement_timeout %s, idle_in_transaction_session_timeout %s", statement, idle)
	return nil
}

func (x *examination) lookAtDurability(_ context.Context, f *findings) error {
	for _, s := range []struct{ name, harm, remedy string }{
		{"fsync", "a crash of the machine can destroy the database", "set fsync = on in the server's configuration"},
		{"full_page_writes", "a crash of the machine can destroy the database, unless its storage never tears a page", "set full_page_writes = on in the server's configuration"},
		{"synchronous_commit", "a crash of the server forgets the last moments: dispatched tasks are lost, finished ones run again", x.alterRole("synchronous_commit", "on")},
	} {
		if x.settings[s.name].Setting == "off" {
			f.add(Warning, s.remedy, "%s is off%s: %s", s.name, x.from(s.name), s.harm)
		}
	}
	f.ok("what is committed survives a crash")
	return nil
}

// tracked are the settings that a pooler itself keeps for each client.
var tracked = []string{"application_name", "client_encoding", "DateStyle", "IntervalStyle", "standard_conforming_strings", "TimeZone"}

func (x *examination) lookAtLeaks(_ context.Context, f *findings) error {
	var leaked []string
	for name, s := range x.settings {
		if s.Source == "session" && !slices.Contains(tracked, name) {
			leaked = append(leaked, name)
		}
	}
	if len(leaked) > 0 {
		slices.Sort(leaked)
		f.add(Note, "if the pooler sets them itself (connect_query of PgBouncer, initialization query of RDS Proxy) all is well; "+
			"else another client sends SET: let it use SET LOCAL, ALTER ROLE, or a role of its own",
			"a server connection was given to us with settings that somebody has SET: %s", strings.Join(leaked, ", "))
	}
	f.ok("no settings of others were met")
	return nil
}

// sample is a look at the database's clock: between from and to on ours it was at.
type sample struct{ from, to, at time.Time }

// skew is how far the database's clock is ahead, and by how much that may be wrong.
func skew(samples []sample) (ahead, uncertain time.Duration) {
	best := slices.MinFunc(samples, func(a, b sample) int { return cmp.Compare(a.to.Sub(a.from), b.to.Sub(b.from)) })
	uncertain = best.to.Sub(best.from) / 2
	return best.at.Sub(best.from.Add(uncertain)), uncertain
}

func (x *examination) lookAtClock(ctx context.Context, f *findings) error {
	var samples []sample
	for range 5 {
		from := x.now()
		at, err := x.q.DoctorClock(ctx, x.pool)
		if err != nil {
			return err
		}
		samples = append(samples, sample{from: from, to: x.now(), at: at.Time})
	}
	ahead, uncertain := skew(samples)
	direction := "ahead of"
	if ahead < 0 {
		direction = "behind"
	}
	text := fmt.Sprintf("the database's clock is %s (±%s) %s this machine's", round(ahead.Abs()), round(uncertain), direction)
	const remedy = "have both machines' clocks set by NTP; leases are safe, since only the database's clock counts for them"
	switch sure := ahead.Abs() - uncertain; {
	case sure >= x.limits.skew:
		f.add(Warning, remedy, "%s: times that clients give (not before, schedules) and times in logs mislead", text)
	case sure >= x.limits.skew/10:
		f.add(Note, remedy, "%s", text)
	}
	f.ok("%s", text)
	return nil
}

func (x *examination) lookAtCapacity(ctx context.Context, f *findings) error {
	c, err := x.q.DoctorConnections(ctx, x.pool, db.DoctorConnectionsParams{Pooled: x.target.Connection == Transaction, Own: x.own})
	if err != nil {
		return err
	}
	fleet, err := x.q.DoctorFleet(ctx, x.pool)
	if err != nil {
		return err
	}
	for _, l := range []struct {
		what       string
		used, most int32
		remedy     string
	}{
		{"the server", c.Used, c.Most, "raise max_connections by"},
		{"the database", c.UsedDatabase, c.MostDatabase, fmt.Sprintf("ALTER DATABASE %s CONNECTION LIMIT", identifier(x.server.Database))},
		{"the role", c.UsedRole, c.MostRole, fmt.Sprintf("ALTER ROLE %s CONNECTION LIMIT", identifier(x.server.Role))},
	} {
		if l.most < 0 {
			continue
		}
		need := fleet.Online * perProcess
		enough := 2 * int64(l.most)
		if x.target.Connection != Transaction {
			enough = max(enough, need)
		}
		if l.what == "the server" {
			enough -= int64(l.most)
		}
		remedy := fmt.Sprintf("%s %d", l.remedy, enough)
		if l.used*10 >= l.most*9 {
			f.add(Warning, remedy+", or let the pooler have fewer server connections", "%d of the %d connections of %s are in use", l.used, l.most, l.what)
		}
		if x.target.Connection != Transaction && need > int64(l.most) {
			f.add(Warning, "put a pooler in transaction mode between, or "+remedy,
				"%d processes are online and may open %d connections each, %d in all; %s allows %d", fleet.Online, perProcess, need, l.what, l.most)
		}
	}
	f.ok("%d of %d in use, %d processes online", c.Used, c.Most, fleet.Online)
	return nil
}

// PoolConns is the size of a process's pool, where its URL names none. A worker uses one connection for
// turns, one for housekeeping, and the others for its tasks' progress and dispatches.
const PoolConns = 4

// perProcess is how many client connections a worker may open: its pool's, and one for its beats.
const perProcess = PoolConns + 1

// duration reads a setting in milliseconds; 0 means that there is no limit.
func (x *examination) duration(name string) time.Duration {
	ms, err := strconv.ParseInt(x.settings[name].Setting, 10, 64)
	if err != nil {
		return 0 // this version of PostgreSQL does not have it
	}
	return time.Duration(ms) * time.Millisecond
}

// sources are the words of pg_settings, for people.
var sources = map[string]string{
	"user": "from the role", "database": "from the database", "database user": "from the role in this database", "session": "left by a SET",
}

// from says where a setting comes from, unless it is the default.
func (x *examination) from(name string) string {
	source := x.settings[name].Source
	if source == "" || source == "default" {
		return ""
	}
	return " (" + cmp.Or(sources[source], "from the "+source) + ")"
}

func (x *examination) alterRole(setting, value string) string {
	where := ""
	if x.settings[setting].Source == "database user" {
		where = " IN DATABASE " + identifier(x.server.Database) // it wins over the role's own
	}
	return fmt.Sprintf("ALTER ROLE %s%s SET %s = %s; -- then reconnect, the pooler too", identifier(x.server.Role), where, setting, literal(value))
}

var plainIdentifier = regexp.MustCompile(`^[a-z_][a-z0-9_]*$`)

// identifier quotes a name where SQL needs it.
func identifier(name string) string {
	if plainIdentifier.MatchString(name) {
		return name
	}
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

// round cuts a duration to what a person reads.
func round(d time.Duration) time.Duration {
	switch {
	case d < time.Millisecond:
		return d.Round(10 * time.Microsecond)
	case d < time.Second:
		return d.Round(time.Millisecond)
	}
	return d.Round(time.Second)
}

// seconds makes a duration of what a query tells.
func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
