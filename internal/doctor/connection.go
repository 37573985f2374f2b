package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/db"
)

// clients is how many client connections take turns: as few as show that they share a server connection.
// Behind a pooler in session mode each takes one away from others.
const clients = 2

// rounds is how often each client connection is asked for its server connection.
const rounds = 4

// patience is how long a further client connection may take at most, since others may be waiting for what
// the first one has.
const patience = 2 * time.Second

// hosts remembers which name an address was looked up for.
type hosts struct{ names sync.Map }

func (h *hosts) remember(lookup pgconn.LookupFunc) pgconn.LookupFunc {
	return func(ctx context.Context, host string) ([]string, error) {
		addresses, err := lookup(ctx, host)
		for _, a := range addresses {
			h.names.Store(a, host)
		}
		return addresses, err
	}
}

// of tells the host, as the URL names it, and the port that a connection goes to.
func (h *hosts) of(conn *pgx.Conn) (host, port string) {
	remote := conn.PgConn().Conn().RemoteAddr()
	host, port, err := net.SplitHostPort(remote.String())
	if err != nil { // a Unix socket: directory/.s.PGSQL.port
		dir, file := filepath.Split(remote.String())
		return filepath.Clean(dir), strings.TrimPrefix(filepath.Ext(file), ".")
	}
	if name, ok := h.names.Load(host); ok {
		host, _ = name.(string)
	}
	return host, port
}

// seen is what one client connection saw.
type seen struct {
	// key is the process that the cancel key names, from when the connection was made.
	key uint32
	// pids are the server processes that answered, one for each transaction.
	pids []uint32
}

// tooManyConnections is PostgreSQL's code for a limit of its own that is met.
const tooManyConnections = "53300"

// first takes the pool's connection. A connection that was closed just now may still count for the server.
func (x *examination) first(ctx context.Context) (*pgxpool.Conn, error) {
	const pause, most = 50 * time.Millisecond, 20
	for tries := 1; ; tries++ {
		conn, err := x.pool.Acquire(ctx)
		var pg *pgconn.PgError
		if tries == most || !errors.As(err, &pg) || pg.Code != tooManyConnections {
			return conn, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// connect makes a client connection beyond the pool's.
func (x *examination) connect(ctx context.Context) (*pgx.Conn, error) {
	c := x.pool.Config()
	if c.BeforeConnect != nil {
		if err := c.BeforeConnect(ctx, c.ConnConfig); err != nil {
			return nil, err
		}
	}
	return pgx.ConnectConfig(ctx, c.ConnConfig)
}

// abandon ends the wait for the answer to a query that was given up: a pooler keeps the query until it has a
// server connection for it.
func abandon(conn *pgx.Conn) {
	if conn.IsClosed() {
		_ = conn.PgConn().Conn().Close()
	}
}

// turn is one of a client connection's.
type turn func(ctx context.Context, client, round int, conn *pgx.Conn) error

// turns gives client connections that are open at the same time their turns: each one as soon as it is
// there, since it may be one too many for what stands between, then all of them again, rounds in all.
// Each turn but the very first has little time. If that one fails there was no client at all; else
// trouble is what kept the others from being as many, or the rounds from their end.
func (x *examination) turns(ctx context.Context, rounds int, take turn) (trouble, none error) {
	pooled, err := x.first(ctx)
	if err != nil {
		return nil, err
	}
	defer pooled.Release()
	conns := []*pgx.Conn{pooled.Conn()}
	hangUp := func(conn *pgx.Conn) {
		abandon(conn)
		_ = conn.Close(ctx)
	}
	defer func() {
		for _, conn := range conns[1:] {
			hangUp(conn)
		}
	}()
	if err := take(ctx, 0, 0, conns[0]); err != nil {
		return nil, err
	}
	briefly := func(do func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(ctx, x.patience())
		defer cancel()
		return do(ctx)
	}
	for i := 1; i < clients && trouble == nil; i++ {
		trouble = briefly(func(ctx context.Context) error {
			conn, err := x.connect(ctx)
			if err != nil {
				return err
			}
			if err := take(ctx, i, 0, conn); err != nil {
				hangUp(conn)
				return err
			}
			conns = append(conns, conn)
			return nil
		})
	}
	for round := 1; round < rounds; round++ {
		for i, conn := range conns {
			if err := briefly(func(ctx context.Context) error { return take(ctx, i, round, conn) }); err != nil {
				return cmp.Or(trouble, err), nil
			}
		}
	}
	return trouble, nil
}

func (x *examination) patience() time.Duration { return min(patience, x.cfg.Timeout/4) }

func (x *examination) lookAtConnection(ctx context.Context, f *findings) error {
	var all []seen
	trouble, none := x.turns(ctx, rounds, func(ctx context.Context, client, round int, conn *pgx.Conn) error {
		pid, err := x.q.DoctorBackend(ctx, conn)
		if err != nil {
			return err
		}
		if round == 0 {
			all = append(all, seen{key: conn.PgConn().PID()})
		}
		if client == 0 && round == 0 {
			host, port := x.hosts.of(conn)
			x.host, x.target.Address = host, net.JoinHostPort(host, port)
		}
		all[client].pids = append(all[client].pids, uint32(pid))
		return nil
	})
	if none != nil {
		return none
	}
	cfg := x.pool.Config().ConnConfig
	x.target.Database, x.target.Role = cfg.Database, cfg.User // until the server says what they are
	connection, backends := classify(all)
	x.target.Connection = connection
	if connection != Transaction {
		for _, s := range all {
			x.own = append(x.own, int32(s.pids[0]))
		}
	}
	between := "a pooler"
	if isRDSProxy(x.host) {
		between = "Amazon RDS Proxy (by its name)"
	}
	if connection == Transaction {
		f.add(Note, "", "%s multiplexes: %d client connections took turns on %d server connections", between, len(all), backends)
	}
	var pg *pgconn.PgError
	switch {
	case errors.As(trouble, &pg):
		f.add(Warning, fmt.Sprintf("a worker may open %d: see what takes them, and the limits of the role, the database, the server and the pooler", perProcess),
			"a second client connection was refused: %s", pg.Message)
	case trouble != nil && !pgconn.Timeout(trouble) && !errors.Is(trouble, context.DeadlineExceeded):
		f.add(Warning, "see the logs of the server and of what stands between", "a second client connection failed: %v", trouble)
	case trouble != nil && connection == Direct:
		f.add(Warning, "see what the server is busy with", "a second client connection got no answer within %s", x.patience())
	case trouble != nil && connection == Session:
		f.add(Warning, "set the pooler to transaction mode; if it is, let it have more server connections, or see what keeps them busy",
			"%s stands between and had no server connection for a second client within %s: it is in session mode, or all are busy", between, x.patience())
	case trouble != nil:
		f.add(Warning, "let the pooler have more server connections, or see what keeps them busy",
			"%s had no server connection within %s: all are busy", between, x.patience())
	case connection == Session:
		f.add(Note, "to share server connections among processes, set the pooler to transaction mode",
			"%s stands between, and was not seen to share server connections: it is in session mode, or was idle enough to give each client its own", between)
	}
	f.ok("direct: each of %d client connections is a server connection", len(all))
	return nil
}

// classify tells what stands between from what client connections saw that were open at the same
// time, and how many server connections answered them.
func classify(all []seen) (connection Connection, backends int) {
	connection = Direct
	owner := map[uint32]int{}
	for i, s := range all {
		for _, pid := range s.pids {
			if first, ok := owner[pid]; ok && first != i {
				connection = Transaction
			}
			owner[pid] = i
			if pid != s.pids[0] {
				connection = Transaction
			}
			// A pooler makes up its own cancel keys: it cannot know which server connection a cancel will be for.
			if pid != s.key && connection == Direct {
				connection = Session
			}
		}
	}
	return connection, len(owner)
}

// isRDSProxy tells by the host's name. An address of one's own that points there is not seen.
func isRDSProxy(host string) bool {
	return strings.Contains(host, ".proxy-") && (strings.HasSuffix(host, ".rds.amazonaws.com") || strings.HasSuffix(host, ".rds.amazonaws.com.cn"))
}

func (x *examination) lookAtStatements(ctx context.Context, f *findings) error {
	named := x.base.Config().ConnConfig.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement
	if !named && !x.cfg.ProbeStatements {
		f.ok("unnamed: safe behind any pooler")
		return nil
	}
	p, none := x.probeStatements(ctx)
	if none != nil {
		return none
	}
	why := p.why
	if len(p.left) > 0 {
		f.add(Warning, "close the pooler's server connections, or wait until it does",
			"the probe's statement may be left on %d server connections", len(p.left))
	}
	const unnamed = "use --statements unnamed (the default), or a pooler that tracks named statements: PgBouncer from 1.21 with max_prepared_statements above 0"
	switch {
	case why != "" && named:
		f.add(Error, unnamed, "named statements are in use and not safe here: %s", why)
	case why != "":
		f.add(Note, "stay with --statements unnamed", "named statements are not safe here: %s", why)
	case p.failed != nil:
		f.unseen(p.failed, x.patience())
	case p.trouble != nil && x.target.Connection != Direct:
		f.add(Note, "", "could not be probed: there was a single client connection, see connection")
	case isRDSProxy(x.host) && named:
		f.add(Warning, "use --statements unnamed (the default)", "named statements are in use; Amazon RDS Proxy may pin client connections for them")
	case x.target.Connection == Transaction:
		f.ok("named statements were tracked by the pooler")
	default:
		f.ok("named statements are safe on a connection of one's own")
	}
	return nil
}

// PostgreSQL's codes for statements that are on another server connection than their client thinks.
const (
	duplicateStatement = "42P05"
	noSuchStatement    = "26000"
)

// probe is what became of named statements.
type probe struct {
	why     string   // they are not safe; empty if they were
	left    []uint32 // server connections on which the probe's own may be left
	failed  error    // of a statement, for another reason
	trouble error    // see turns
}

// probeStatements gives a statement of one name to all client connections, as the driver's cache would,
// and uses it in turn.
func (x *examination) probeStatements(ctx context.Context) (p probe, none error) {
	name := "pith_doctor_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	prepare := func(p *pgconn.Pipeline) {
		p.SendPrepare(name, db.DoctorBackend, nil)
		p.SendQueryParams(db.DoctorBackend, nil, nil, nil, nil)
	}
	use := func(p *pgconn.Pipeline) { p.SendQueryPrepared(name, nil, nil, nil) }
	closeIt := func(p *pgconn.Pipeline) {
		p.SendDeallocate(name)
		p.SendQueryParams(db.DoctorBackend, nil, nil, nil, nil)
	}
	// Closing reaches the server connection that the pooler happens to give.
	const uses, closes = 3, 16
	p.trouble, none = x.turns(ctx, uses+closes, func(ctx context.Context, _, round int, conn *pgx.Conn) error {
		if round >= uses && p.why == "" && p.failed == nil {
			p.left = nil // a pooler that tracks statements closes them itself
		}
		if conn.IsClosed() || round >= uses && len(p.left) == 0 {
			return nil
		}
		step := use
		switch {
		case round == 0:
			step = prepare
		case round >= uses:
			step = closeIt
		}
		pid, err := flight(ctx, conn, step)
		var pg *pgconn.PgError
		switch {
		case errors.As(err, &pg) && pg.Code == duplicateStatement:
			p.why = "two clients that prepare the same statement meet on one server connection"
		case errors.As(err, &pg) && pg.Code == noSuchStatement:
			p.why = "a client's statement is missing on the server connection that it is given"
		case err != nil && round == 0:
			return err // the client is one too many
		case err != nil:
			p.failed = err
		case round == 0 && !slices.Contains(p.left, pid):
			p.left = append(p.left, pid)
		case round >= uses:
			p.left = slices.DeleteFunc(p.left, func(l uint32) bool { return l == pid })
		}
		return nil
	})
	return p, none
}

// flight sends what send puts into a pipeline, up to one Sync, and answers the number that comes back.
func flight(ctx context.Context, conn *pgx.Conn, send func(*pgconn.Pipeline)) (answer uint32, err error) {
	p := conn.PgConn().StartPipeline(ctx)
	defer func() { err = errors.Join(err, p.Close()) }()
	send(p)
	if err := p.Sync(); err != nil {
		return 0, err
	}
	for {
		result, rerr := p.GetResults()
		var pg *pgconn.PgError
		switch {
		case errors.As(rerr, &pg):
			err = rerr // what follows up to the Sync is skipped by the server
			continue
		case rerr != nil:
			return 0, errors.Join(err, rerr)
		}
		switch r := result.(type) {
		case *pgconn.ResultReader:
			for r.NextRow() {
				n, perr := strconv.ParseUint(string(r.Values()[0]), 10, 32)
				if perr != nil {
					return 0, fmt.Errorf("server process: %w", perr)
				}
				answer = uint32(n)
			}
			if _, cerr := r.Close(); cerr != nil {
				err = cerr
			}
		case *pgconn.PipelineSync:
			return answer, err
		}
	}
}
