package rdsproxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pithworks/pith/internal/pinning"
)

const (
	// clientBuffer is the size of a client's buffer at its start, clientKeep the
	// largest one that it keeps, in bytes.
	clientBuffer = 512
	clientKeep   = 4 << 10

	// largeMessage is the size from which on a message is not copied to be sent.
	largeMessage = 8 << 10

	// maxOwed is how many answers the server may owe a client before the proxy takes
	// no more of its messages. It is more than the server keeps in its own buffer.
	maxOwed = 1 << 14
)

// A session is one client's. Its goroutine reads from the client.
type session struct {
	p              *Proxy
	conn           net.Conn
	in             *frameReader
	tls            bool
	user, database string
	pool           *pool

	server   *serverConn // what was borrowed last; serverConn.client tells whether it still is
	toServer []byte      // what was not written to it yet
	mayCopy  bool        // a COPY from the client may begin before the next Sync
	started  time.Time   // when the message that is arriving began to

	// What the client's names of prepared statements stand for, the size of the
	// messages, and how many transactions have ended. Guarded by the mutex of the
	// server connection while there is one.
	view         map[string]*stmt
	viewSize     int
	transactions int

	gone atomic.Bool  // the server connection was lost
	told atomic.Bool  // the client has got a FATAL
	last atomic.Int64 // when it was active last, as Unix time in ns

	asked, granted atomic.Int64 // when the oldest unanswered message came, and got a connection, likewise

	writing sync.Mutex // held while the client is written to; guards what follows
	partial bool       // a message is written in part
	closed  bool       // nothing more may be written
}

// reply writes messages of our own to the client.
func (s *session) reply(messages ...pgproto3.BackendMessage) error {
	var b []byte
	for _, m := range messages {
		var err error
		if b, err = m.Encode(b); err != nil {
			return err
		}
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.partial {
		return errSilent
	}
	return s.write(b, true)
}

// tell is the last word to the client. The caller has set told.
func (s *session) tell(f *fatalError) {
	b, err := f.response.Encode(nil)
	s.writing.Lock()
	defer s.writing.Unlock()
	if err == nil && !s.partial {
		_ = s.write(b, true)
	}
	s.closed = true
}

// write writes to the client; whole tells whether b ends with a message. A client
// that takes nothing is closed. The caller holds writing.
func (s *session) write(b []byte, whole bool) error {
	if s.closed {
		return net.ErrClosed
	}
	if s.pool != nil { // the startup has a deadline of its own
		_ = s.conn.SetWriteDeadline(time.Now().Add(s.p.cfg.WriteTimeout))
	}
	s.partial = !whole
	_, err := s.conn.Write(b)
	if err != nil {
		s.closed = true
		_ = s.conn.Close()
	}
	return err
}

// answered notes that a request of the client has been answered.
func (s *session) answered() {
	now := time.Now()
	s.last.Store(now.UnixNano())
	c := &s.p.counters
	if asked := s.asked.Swap(0); asked != 0 {
		c.response.add(time.Duration(now.UnixNano() - asked))
		c.database.add(time.Duration(now.UnixNano() - s.granted.Load()))
	}
}

// lost ends a session whose server connection has ended. The server connection's
// goroutine calls it.
func (s *session) lost(sc *serverConn) {
	_ = sc.flush()
	if !s.told.Swap(true) {
		s.tell(fatal("08006", "the server closed the connection unexpectedly", "", ""))
	}
	s.wake()
}

// wake ends a read of the client. The reason must have been stored before.
func (s *session) wake() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) }

// end closes the client, after it has been told why.
func (s *session) end(err error) {
	if s.gone.Load() && s.server != nil {
		// It writes to the client until then.
		<-s.server.done
	}
	s.leave()
	if s.pool != nil {
		s.pool.leave()
	}
	if f, ok := errors.AsType[*fatalError](err); ok && !s.told.Swap(true) {
		if s.pool == nil {
			_ = s.conn.SetWriteDeadline(time.Now().Add(linger))
		}
		s.tell(f)
	}
	if s.told.Load() {
		s.closeSlowly()
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	s.closed = true
}

// closeSlowly closes our side, and then takes what the client still sends: else it
// could lose what was written to it.
func (s *session) closeSlowly() {
	s.writing.Lock()
	s.closed = true
	s.writing.Unlock()
	deadline := time.Now().Add(linger)
	_ = s.conn.SetDeadline(deadline)
	conn := s.conn
	if c, ok := conn.(*tls.Conn); ok {
		_ = c.CloseWrite()
		conn = c.NetConn()
	}
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite()
	}
	_, _ = io.Copy(io.Discard, conn)
}

// leave gives the server connection back, or ends it if it is in use.
func (s *session) leave() {
	sc := s.server
	if sc == nil {
		return
	}
	sc.mu.Lock()
	if sc.client != s {
		sc.mu.Unlock()
		return
	}
	sc.unflushed = sc.unflushed && len(s.toServer) > 0
	if sc.free() {
		sc.client = nil
		sc.mu.Unlock()
		sc.pool.put(sc)
		return
	}
	sc.abandon()
	sc.mu.Unlock()
	sc.farewell()
}

// errLeft means that the client said goodbye.
var errLeft = errors.New("client left")

// run forwards what the client sends. The error is nil if the client has left.
func (s *session) run(ctx context.Context) error {
	s.last.Store(time.Now().UnixNano())
	s.in.before = s.beforeRead
	for {
		typ, n, err := s.in.header()
		var frame []byte
		if err == nil {
			frame, err = s.in.frame(n)
		}
		switch {
		case err == nil:
			s.started = time.Time{}
			s.last.Store(time.Now().UnixNano())
			err = s.message(ctx, typ, frame)
		case errors.Is(err, os.ErrDeadlineExceeded):
			err = s.timedOut()
		case errors.Is(err, errLength):
			err = protocolError("invalid message length")
		default:
			if large, ok := errors.AsType[*tooLargeError](err); ok {
				err = fatal("54000", large.Error(), "", "")
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, errLeft):
			_ = s.flush()
			return nil
		case errors.Is(err, io.EOF):
			return nil
		default:
			return err
		}
	}
}

// errLost means that the server connection has ended, and the client was told.
var errLost = errors.New("server connection lost")

// beforeRead sends what is buffered, and sets the time until which the client must
// send something.
func (s *session) beforeRead() error {
	if err := s.flush(); err != nil {
		return err
	}
	var deadline time.Time
	if s.in.buffered() == 0 {
		s.started = time.Time{}
		deadline = time.Unix(0, s.last.Load()).Add(s.p.cfg.IdleClientTimeout)
		if now := time.Now(); deadline.Before(now) && s.busy() {
			deadline = now.Add(s.p.cfg.IdleClientTimeout)
		}
	} else {
		if s.started.IsZero() {
			s.started = time.Now()
		}
		deadline = s.started.Add(s.p.cfg.MessageTimeout)
	}
	_ = s.conn.SetReadDeadline(deadline)
	if s.gone.Load() {
		return errLost
	}
	return nil
}

// timedOut decides what it means that the client sent nothing until the deadline.
func (s *session) timedOut() error {
	switch {
	case s.gone.Load():
		return errLost
	case s.in.buffered() > 0:
		return fatal("08P01", "message was not completed in time", "", "")
	case s.busy() || time.Since(time.Unix(0, s.last.Load())) < s.p.cfg.IdleClientTimeout:
		return nil
	}
	return fatal("57P05", "terminating connection due to idle-session timeout", "", "")
}

// busy tells whether the client waits for the server, or the server for it.
func (s *session) busy() bool {
	sc := s.server
	if sc == nil {
		return false
	}
	sc.mu.Lock()
	defer sc.mu.Unlock()
	return sc.client == s && (sc.tx != 'I' || sc.owed.len() > 0 || sc.unsynced || sc.skipping)
}

// A message is one that goes to the server.
type message struct {
	typ   byte
	frame []byte
	pins  bool

	// The prepared statement that it is about, if it is about one.
	onStatement bool
	name        string
}

// message handles one message of the client.
func (s *session) message(ctx context.Context, typ byte, frame []byte) error {
	m := message{typ: typ, frame: frame}
	body := frame[headerSize:]
	switch typ {
	case 'Q':
		var q pgproto3.Query
		if err := q.Decode(body); err != nil {
			return protocolError(err.Error())
		}
		s.countQuery()
		m.pins = s.inspect(q.String)
	case 'P':
		var q pgproto3.Parse
		if err := q.Decode(body); err != nil {
			return protocolError(err.Error())
		}
		m.onStatement, m.name = true, q.Name
		m.pins = s.inspect(q.Query)
		if q.Name != "" {
			s.find(false, "named statement", q.Query)
		}
	case 'B':
		portal, rest, ok := cstring(body)
		if ok {
			m.name, _, ok = cstring(rest)
		}
		if !ok {
			return protocolError("invalid Bind message")
		}
		m.onStatement = true
		if portal != "" {
			s.find(false, "named portal", "")
		}
	case 'D', 'C':
		if len(body) == 0 {
			return protocolError("invalid Describe or Close message")
		}
		name, _, ok := cstring(body[1:])
		if !ok {
			return protocolError("invalid Describe or Close message")
		}
		m.onStatement, m.name = body[0] == 'S', name
	case 'E':
		s.countQuery()
	case 'F':
		s.find(true, "function call message", "")
		m.pins = true
	case 'S', 'H', 'd', 'c', 'f':
	case 'X':
		return errLeft
	default:
		return protocolError(fmt.Sprintf("invalid frontend message type %d", typ))
	}
	return s.forward(ctx, &m)
}

func (s *session) countQuery() {
	if s.tls {
		s.p.counters.queriesTLS.Add(1)
	} else {
		s.p.counters.queriesNoTLS.Add(1)
	}
}

// inspect records what a text holds, and tells whether it pins.
func (s *session) inspect(text string) (pins bool) {
	findings, err := pinning.Inspect(text)
	if err != nil && len(findings) == 0 {
		// The server may read it all the same, as its settings and version have it.
		s.find(false, "text outside PostgreSQL's grammar", text)
	}
	for _, f := range findings {
		s.find(f.Pins, f.Construct, text)
		pins = pins || f.Pins
	}
	return pins
}
