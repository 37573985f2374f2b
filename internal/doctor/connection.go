package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/db"
)

// rounds is how often each client connection is asked for its server connection.
const rounds = 4

// seen is what one client connection saw.
type seen struct {
	// key is the process that the cancel key names, from when the connection was made.
	key uint32
	// pids are the server processes that answered, one for each transaction.
	pids []uint32
}

// acquire takes as many client connections as there are to have, at least one. They are to be released.
func (x *examination) acquire(ctx context.Context) (conns []*pgxpool.Conn, err error) {
	first, err := x.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	conns = append(conns, first)
	// Where a limit is met some refuse, and others keep one waiting.
	ctx, cancel := context.WithTimeout(ctx, x.cfg.Timeout/4)
	defer cancel()
	for range clients - 1 {
		conn, err := x.pool.Acquire(ctx)
		if err != nil {
			break // those that there are will do
		}
		conns = append(conns, conn)
	}
	return conns, nil
}

func release(conns []*pgxpool.Conn) {
	for _, c := range conns {
		c.Release()
	}
}

func (x *examination) lookAtConnection(ctx context.Context, f *findings) error {
	conns, err := x.acquire(ctx)
	if err != nil {
		return err
	}
	defer release(conns)
	all := make([]seen, len(conns))
	for range rounds {
		for i, conn := range conns { // all are open, and take turns
			pid, err := x.q.DoctorBackend(ctx, conn)
			if err != nil {
				return err
			}
			all[i].key = conn.Conn().PgConn().PID()
			all[i].pids = append(all[i].pids, uint32(pid))
		}
	}
	cfg := x.pool.Config().ConnConfig
	x.target.Address = net.JoinHostPort(cfg.Host, strconv.Itoa(int(cfg.Port)))
	connection, backends := classify(all)
	x.target.Connection = connection
	between := "a pooler"
	if isRDSProxy(cfg.Host) {
		between = "Amazon RDS Proxy (by its name)"
	}
	switch connection {
	case Transaction:
		f.add(Note, "", "%s multiplexes: %d client connections took turns on %d server connections", between, len(all), backends)
	case Session:
		f.add(Note, "to share server connections among processes, set the pooler to transaction mode",
			"%s stands between, and was not seen to share server connections: it is in session mode, or was idle enough to give each client its own", between)
	default:
		f.ok("direct: each of %d client connections is a server connection", len(all))
	}
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
	why, left, err := x.probeStatements(ctx)
	if len(left) > 0 {
		f.add(Warning, "close the pooler's server connections, or wait until it does",
			"the probe's statement may be left on %d server connections", len(left))
	}
	if err != nil {
		return err
	}
	const unnamed = "use --statements unnamed (the default), or a pooler that tracks named statements: PgBouncer from 1.21 with max_prepared_statements above 0"
	switch {
	case why != "" && named:
		f.add(Error, unnamed, "named statements are in use and not safe here: %s", why)
	case why != "":
		f.add(Note, "stay with --statements unnamed", "named statements are not safe here: %s", why)
	case isRDSProxy(x.pool.Config().ConnConfig.Host) && named:
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

// probeStatements gives a statement of one name to all client connections, as the driver's cache would,
// and uses it in turn. It answers what went wrong, empty if nothing did, and the server connections
// on which the statement may be left.
func (x *examination) probeStatements(ctx context.Context) (why string, left []uint32, err error) {
	conns, err := x.acquire(ctx)
	if err != nil {
		return "", nil, err
	}
	defer release(conns)
	name := "pith_doctor_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	for i, step := range []func(*pgconn.Pipeline){
		func(p *pgconn.Pipeline) {
			p.SendPrepare(name, db.DoctorBackend, nil)
			p.SendQueryParams(db.DoctorBackend, nil, nil, nil, nil)
		},
		func(p *pgconn.Pipeline) { p.SendQueryPrepared(name, nil, nil, nil) },
		func(p *pgconn.Pipeline) { p.SendQueryPrepared(name, nil, nil, nil) },
	} {
		for _, conn := range conns {
			pid, ferr := flight(ctx, conn, step)
			var pg *pgconn.PgError
			switch {
			case errors.As(ferr, &pg) && pg.Code == duplicateStatement:
				why = "two clients that prepare the same statement meet on one server connection"
			case errors.As(ferr, &pg) && pg.Code == noSuchStatement:
				why = "a client's statement is missing on the server connection that it is given"
			case ferr != nil:
				err = ferr
			case i == 0 && !slices.Contains(left, pid):
				left = append(left, pid)
			}
		}
	}
	// Closing reaches the server connection that the pooler happens to give.
	for range rounds {
		for _, conn := range conns {
			pid, ferr := flight(ctx, conn, func(p *pgconn.Pipeline) {
				p.SendDeallocate(name)
				p.SendQueryParams(db.DoctorBackend, nil, nil, nil, nil)
			})
			if ferr != nil {
				err = errors.Join(err, ferr)
				continue
			}
			left = slices.DeleteFunc(left, func(l uint32) bool { return l == pid })
		}
		if len(left) == 0 {
			break
		}
	}
	if why == "" && err == nil {
		left = nil // a pooler that tracks statements closes them itself
	}
	return why, left, err
}

// flight sends what send puts into a pipeline, up to one Sync, and answers the number that comes back.
func flight(ctx context.Context, conn *pgxpool.Conn, send func(*pgconn.Pipeline)) (answer uint32, err error) {
	p := conn.Conn().PgConn().StartPipeline(ctx)
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
