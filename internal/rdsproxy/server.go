package rdsproxy

import (
	"context"
	"io"
	"maps"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

const (
	// serverBuffer is the size of a server connection's buffers, in bytes.
	serverBuffer = 16 << 10

	// linger is how long we wait for the other side to follow when a connection ends.
	linger = 500 * time.Millisecond
)

// A serverConn is a connection to the server. Its client's goroutine writes to the
// server, its own one reads from it and writes to the client.
type serverConn struct {
	pool   *pool
	conn   net.Conn
	tls    bool
	pid    uint32
	params map[string]string
	done   chan struct{} // closed when its goroutine reads no more

	// For its own goroutine.
	in     *frameReader
	out    []byte   // for the client
	outFor *session // whom out is for
	whole  bool     // out ends with a message

	mu        sync.Mutex // guards what follows; taken after session.writing and pool.mu
	answer    sync.Cond  // signaled when the server has answered, or dead is set
	client    *session   // who has borrowed it
	owed      answers
	owned     map[string]*stmt // what names stand for on the server
	changed   map[string]int   // seq of the last message that changed what a name stands for
	seq       int              // of the next answer
	lastSync  int              // seq of the last Sync
	tx        byte             // as in the last ReadyForQuery
	pinned    bool             // client keeps it
	adopted   bool             // it holds the statements of its client, who keeps it, and no others
	unsynced  bool             // an extended message was sent after the last Sync
	skipping  bool             // the server skips messages up to the next Sync
	copyIn    bool             // the server expects data from the client
	fed       bool             // the client sent data after what may have begun a COPY
	unflushed bool             // client is writing
	uncertain bool             // owed is not known any more: client keeps it
	retired   bool             // the next to have it is nobody
	dead      bool             // done, or soon
}

// connect makes a server connection.
func connect(ctx context.Context, pl *pool) (*serverConn, error) {
	// Copied: the function that is set belongs to this attempt.
	cfg := pl.cfg.Copy()
	var r io.Reader
	cfg.BuildFrontend = func(conn io.Reader, w io.Writer) *pgproto3.Frontend {
		r = conn
		return pgproto3.NewFrontend(&boundedReader{r: conn}, w)
	}
	pg, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	h, err := pg.Hijack()
	if err != nil {
		return nil, err
	}
	sc := newServerConn(pl, h.Conn, r)
	sc.tls, sc.pid, sc.params = h.TLSConfig != nil, h.PID, maps.Clone(h.ParameterStatuses)
	return sc, nil
}

// newServerConn makes one of a connection that is ready for queries. r reads from
// it.
func newServerConn(pl *pool, conn net.Conn, r io.Reader) *serverConn {
	sc := &serverConn{
		pool:    pl,
		conn:    conn,
		done:    make(chan struct{}),
		owned:   map[string]*stmt{},
		changed: map[string]int{},
		tx:      'I',
	}
	sc.answer.L = &sc.mu
	sc.in = &frameReader{r: r, start: serverBuffer, keep: serverBuffer, before: sc.flush}
	return sc
}

// run forwards what the server sends until there is no more.
func (sc *serverConn) run(ctx context.Context) {
	registered := sc.pool.p.register(sc.conn)
	var err error
	for registered && err == nil {
		err = sc.forward(ctx)
	}
	sc.mu.Lock()
	sc.dead = true
	s := sc.client
	if s != nil {
		// Before anybody may see that it has lost its connection.
		s.gone.Store(true)
	}
	sc.client = nil
	sc.answer.Broadcast()
	sc.mu.Unlock()
	if s != nil {
		s.lost(sc)
	}
	sc.pool.p.unregister(sc.conn)
	close(sc.done)
	sc.pool.remove(sc)
}

// forward forwards one message.
func (sc *serverConn) forward(ctx context.Context) error {
	typ, n, err := sc.in.header()
	if err != nil {
		return err
	}
	switch typ {
	case 'Z':
		return sc.readyForQuery(n)
	case 'E':
		return sc.errorResponse(ctx, n)
	}
	sc.mu.Lock()
	s := sc.client
	completed, err := sc.answered(typ)
	late := completed.late(s)
	sc.answer.Signal()
	sc.mu.Unlock()
	if err != nil {
		sc.outOfStep(ctx, typ)
		return err
	}
	if late != nil {
		s.find(false, "unnamed statement of an earlier transaction", parseText(late.parse))
	}
	if completed.quiet {
		s = nil
	}
	return sc.in.stream(n, func(piece []byte, last bool) { sc.send(s, piece, last) })
}

// send puts bytes into the buffer for a client; nil: for nobody. last tells whether
// they end a message.
func (sc *serverConn) send(s *session, piece []byte, last bool) {
	if s == nil {
		return
	}
	sc.outFor, sc.whole = s, last
	sc.out = append(sc.out, piece...)
	if len(sc.out) >= serverBuffer {
		s.writing.Lock()
		defer s.writing.Unlock()
		sc.deliver(s)
	}
}

// flush writes what is buffered.
func (sc *serverConn) flush() error {
	if s := sc.outFor; s != nil && len(sc.out) > 0 {
		s.writing.Lock()
		defer s.writing.Unlock()
		sc.deliver(s)
	}
	return nil
}

// deliver writes the buffer to the client, which is dropped if it does not take it.
// The caller holds the client's writing.
func (sc *serverConn) deliver(s *session) {
	err := s.write(sc.out, sc.whole)
	sc.out, sc.outFor = sc.out[:0], nil
	if err == nil {
		return
	}
	sc.mu.Lock()
	has := sc.client == s
	if has {
		sc.abandon()
	}
	sc.mu.Unlock()
	if has {
		sc.farewell()
	}
}

// readyForQuery forwards the server's readiness, and gives the connection back if
// the client needs it no more.
func (sc *serverConn) readyForQuery(n int) error {
	frame, err := sc.in.frame(n)
	if err != nil {
		return err
	}
	var m pgproto3.ReadyForQuery
	if err := m.Decode(frame[headerSize:]); err != nil {
		return err
	}
	sc.mu.Lock()
	s := sc.client
	sc.mu.Unlock()
	if s == nil {
		return nil
	}
	// The client may have given the connection back, and borrowed another one, as
	// soon as nothing is owed. What comes from there must come after this.
	s.writing.Lock()
	defer s.writing.Unlock()
	sc.mu.Lock()
	if sc.client != s {
		sc.mu.Unlock()
		return nil
	}
	completed, err := sc.answered('Z')
	if err != nil {
		sc.mu.Unlock()
		return err
	}
	sc.answer.Signal()
	sc.tx = m.TxStatus
	if sc.tx == 'I' && !completed.quiet {
		s.transactions++
	}
	free := sc.free()
	if free {
		sc.client = nil
	}
	last := sc.owed.len() == 0
	sc.mu.Unlock()
	if !completed.quiet {
		s.answered()
		sc.out = append(sc.out, frame...)
		sc.outFor, sc.whole = s, true
	}
	if last && len(sc.out) > 0 {
		sc.deliver(s)
	}
	if free {
		sc.pool.put(sc)
	}
	return nil
}

// free tells whether nothing ties the client to the connection. The caller holds mu.
func (sc *serverConn) free() bool {
	return sc.tx == 'I' && sc.owed.len() == 0 && !sc.pinned && !sc.unsynced && !sc.skipping && !sc.copyIn && !sc.unflushed && !sc.uncertain
}

// errorResponse forwards an error.
func (sc *serverConn) errorResponse(ctx context.Context, n int) error {
	frame, err := sc.in.frame(n)
	if err != nil {
		return err
	}
	var m pgproto3.ErrorResponse
	if err := m.Decode(frame[headerSize:]); err != nil {
		return err
	}
	sc.mu.Lock()
	s := sc.client
	uncertain := sc.uncertain
	quiet := sc.failed()
	lost := sc.uncertain && !uncertain
	switch m.Code {
	case "26000", "42P05":
		// The names are not what was thought: SQL may have changed them unseen.
		sc.retired = true
	}
	sc.answer.Signal()
	sc.mu.Unlock()
	if lost && s != nil {
		s.find(true, lostCopy, "")
	}
	if m.SeverityUnlocalized == "FATAL" || m.SeverityUnlocalized == "PANIC" {
		sc.pool.p.cfg.Log.InfoContext(ctx, "server ends a connection", "pid", sc.pid, "database", sc.pool.key.database, "code", m.Code, "message", m.Message)
		if s != nil {
			s.told.Store(true)
		}
	}
	if !quiet {
		sc.send(s, frame, true)
	}
	return nil
}

// outOfStep reports an error of the server, or of ours.
func (sc *serverConn) outOfStep(ctx context.Context, typ byte) {
	sc.pool.p.cfg.Log.ErrorContext(ctx, "the server's answers are out of step", "pid", sc.pid, "message_type", string(rune(typ)))
}

// abandon takes a connection from its client, who has left while it was busy. The
// caller holds mu, lets go of it, and calls farewell.
func (sc *serverConn) abandon() {
	sc.client = nil
	sc.uncertain = true
	sc.owed.replace(nil)
	sc.answer.Broadcast()
}

// farewell ends a connection that was abandoned. What the client has sent the server
// executes, if it has received it.
func (sc *serverConn) farewell() {
	_ = sc.conn.SetDeadline(time.Now().Add(linger))
	bye, _ := (&pgproto3.Terminate{}).Encode(nil) // cannot fail
	_, _ = sc.conn.Write(bye)
}
