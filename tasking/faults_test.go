package tasking_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5/pgxpool"
)

// how is the way in which a statement fails, as its sender sees it.
type how string

const (
	// cut: the connection breaks before the first byte of the statement is on it.
	cut how = "connection cut before it is sent"
	// lost: the database has executed and committed the statement, and the connection breaks before
	// its answer arrives.
	lost how = "answer lost after the commit"
)

// faults break the connections of a pool at chosen statements. It doubles the way to the database,
// never the database.
type faults struct {
	mu    sync.Mutex
	plans []plan
	// longest is the length of the longest statement text that was sent.
	longest int
}

// plan breaks a connection when it is next used for the query of this name.
type plan struct {
	query string
	how   how
	// then is called once the harm is done, before the sender hears of it. It may be nil.
	then func()
}

// arm breaks the next statement of this query's name.
func (f *faults) arm(query string, h how, then func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.plans = append(f.plans, plan{query, h, then})
}

// left counts the plans that have not come about.
func (f *faults) left() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.plans)
}

func (f *faults) longestText() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.longest
}

// sent takes note of one flight of messages and returns the plan that it meets.
func (f *faults) sent(flight []byte) *plan {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(flight) > 5 && flight[0] == 'P' { // Parse: it holds the statement's text
		f.longest = max(f.longest, int(binary.BigEndian.Uint32(flight[1:5])))
	}
	for i, p := range f.plans {
		if bytes.Contains(flight, []byte("-- name: "+p.query+" :")) {
			f.plans = append(f.plans[:i:i], f.plans[i+1:]...)
			return &p
		}
	}
	return nil
}

// faulty is a pool like p on connections that can break. It is closed when the test ends.
func (h *harness) faulty(p *pgxpool.Pool) (*pgxpool.Pool, *faults) {
	h.t.Helper()
	f := &faults{}
	c := p.Config()
	dial := c.ConnConfig.DialFunc
	c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &breakable{Conn: conn, faults: f}, nil
	}
	broken, err := pgxpool.NewWithConfig(context.WithoutCancel(h.t.Context()), c)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		broken.Close()
		if n := f.left(); n > 0 {
			h.t.Errorf("%d planned faults did not come about", n)
		}
	})
	return broken, f
}

// breakable is a connection to the database.
type breakable struct {
	net.Conn
	faults *faults

	mu       sync.Mutex
	dropping *plan // swallow the answer, then break
}

func (c *breakable) Write(flight []byte) (int, error) {
	p := c.faults.sent(flight)
	if p == nil {
		return c.Conn.Write(flight)
	}
	if p.how == lost {
		c.mu.Lock()
		c.dropping = p
		c.mu.Unlock()
		return c.Conn.Write(flight)
	}
	err := c.Close()
	if p.then != nil {
		p.then()
	}
	if err != nil {
		return 0, err
	}
	return 0, &net.OpError{Op: "write", Net: "tcp", Err: io.ErrClosedPipe}
}

func (c *breakable) Read(b []byte) (int, error) {
	c.mu.Lock()
	p := c.dropping
	c.mu.Unlock()
	if p == nil {
		return c.Conn.Read(b)
	}
	if err := swallow(c.Conn); err != nil {
		return 0, err
	}
	err := c.Close()
	if p.then != nil {
		p.then()
	}
	if err != nil {
		return 0, err
	}
	return 0, io.ErrUnexpectedEOF
}

// swallow reads one whole answer: messages up to ReadyForQuery, which comes after the commit.
func swallow(r io.Reader) error {
	for {
		var head [5]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return err
		}
		if _, err := io.CopyN(io.Discard, r, int64(binary.BigEndian.Uint32(head[1:]))-4); err != nil {
			return err
		}
		if head[0] == 'Z' {
			return nil
		}
	}
}

// rollBackOnce makes the next transaction that changes this table fail when it commits, with an error
// that says: send it again. The sequence outlives the rollback, so there is no second time.
func (h *harness) rollBackOnce(table string) {
	h.t.Helper()
	h.exec(strings.ReplaceAll(`
		CREATE SEQUENCE TABLE_rollback;
		CREATE FUNCTION TABLE_rollback() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF nextval('TABLE_rollback') = 1 THEN
				RAISE EXCEPTION 'rolled back at commit' USING ERRCODE = 'serialization_failure';
			END IF;
			RETURN NULL;
		END $$;
		CREATE CONSTRAINT TRIGGER TABLE_rollback AFTER INSERT OR UPDATE OR DELETE ON TABLE
			DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION TABLE_rollback();`, "TABLE", table))
	h.t.Cleanup(func() {
		ctx := context.WithoutCancel(h.t.Context())
		var called bool
		if err := h.Direct.QueryRow(ctx, "SELECT is_called FROM "+table+"_rollback").Scan(&called); err != nil || !called {
			h.t.Errorf("no transaction on %s was rolled back: %v", table, err)
		}
	})
}
