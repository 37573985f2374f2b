package rdsproxy

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// forward sends a message to the server, over a connection that is borrowed if
// there is none.
func (s *session) forward(ctx context.Context, m *message) error {
	if m.typ == 'S' && s.mayCopy {
		swallowed, err := s.settle()
		if err != nil || swallowed {
			return err
		}
	}
	sc, err := s.attach(ctx, m.typ)
	lost := false
	for sc != nil && sc.premature(m) {
		sc.mu.Unlock()
		if err := s.await(sc, func() bool { return sc.premature(m) }); err != nil {
			return err
		}
		sc, err = s.attach(ctx, m.typ)
		if sc != nil && sc.stuck() && sc.premature(m) {
			// The message breaks the COPY.
			sc.lose()
			lost = true
		}
	}
	if sc == nil {
		return err
	}
	sc.pinned = sc.pinned || m.pins
	if sc.pinned && !sc.adopted {
		s.toServer = sc.adopt(s, s.toServer)
	}
	err = sc.plan(s, m)
	sc.unflushed = true
	sc.mu.Unlock()
	if lost {
		s.find(true, lostCopy, "")
	}
	if err != nil {
		return err
	}
	if len(m.frame) >= largeMessage {
		return s.flush(m.frame)
	}
	s.toServer = append(s.toServer, m.frame...)
	if len(s.toServer) >= largeMessage {
		return s.flush()
	}
	return nil
}

// premature tells whether it is not known yet what must go ahead of a message. The
// caller holds sc.mu.
func (sc *serverConn) premature(m *message) bool {
	switch {
	case sc.uncertain || sc.skipping:
		return false
	case (m.pins || sc.pinned) && !sc.adopted && sc.earlier():
		return true
	case m.typ == 'B', m.typ == 'D', m.typ == 'P' && m.name != "":
		return m.onStatement && sc.unsettled(m.name)
	}
	return false
}

// plan notes what a message does, and puts what must go ahead of it into the
// client's buffer. The caller holds sc.mu.
func (sc *serverConn) plan(s *session, m *message) error {
	switch m.typ {
	case 'P':
		if m.name != "" {
			s.toServer = sc.reconcile(s, m.name, s.toServer)
		}
		if s.viewSize+len(m.frame) > s.p.cfg.MaxMessage {
			return fatal("54000", fmt.Sprintf("prepared statements of a client exceed the limit of %d bytes", s.p.cfg.MaxMessage), "", "")
		}
		s.toServer = sc.room(s, m.name, s.toServer)
		sc.assign(s, 'P', m.name, &stmt{parse: slices.Clone(m.frame)})
	case 'B', 'D':
		a := answer{kind: m.typ}
		if m.onStatement && m.name == "" && !sc.pinned {
			a.unnamed = s.view[""]
		}
		if m.onStatement {
			s.toServer = sc.reconcile(s, m.name, s.toServer)
			if st := s.view[m.name]; m.typ == 'B' && st != nil && mayCopy(st.parse) {
				s.mayCopy = true
			}
		}
		sc.owe(a)
	case 'C':
		if m.onStatement {
			sc.assign(s, 'C', m.name, nil)
		} else {
			sc.owe(answer{kind: 'C'})
		}
	case 'Q':
		s.mayCopy = mayCopy(m.frame)
		// A simple query drops the unnamed statement.
		sc.assign(s, 'Q', "", nil)
	case 'E', 'F', 'S':
		sc.owe(answer{kind: m.typ})
	case 'd':
		sc.fed = true
	case 'c', 'f':
		sc.fed = true
		sc.owe(answer{kind: endOfData})
	}
	return nil
}

// mayCopy tells whether a message's text may hold a COPY from the client.
func mayCopy(frame []byte) bool {
	i := bytes.IndexAny(frame, "cC")
	for i >= 0 && len(frame) >= i+4 {
		if bytes.EqualFold(frame[i:i+4], []byte("copy")) {
			return true
		}
		frame = frame[i+1:]
		i = bytes.IndexAny(frame, "cC")
	}
	return false
}

// parseText returns the text of a Parse message.
func parseText(frame []byte) string {
	var m pgproto3.Parse
	if err := m.Decode(frame[headerSize:]); err != nil {
		return ""
	}
	return m.Query
}

// attach returns the client's server connection, locked. It is nil, without an
// error, for a message that means nothing without one.
func (s *session) attach(ctx context.Context, typ byte) (*serverConn, error) {
	now := time.Now()
	for {
		if sc := s.server; sc != nil {
			sc.mu.Lock()
			if sc.client == s && !sc.full() {
				if sc.owed.len() == 0 && s.asked.Load() == 0 {
					s.granted.Store(time.Now().UnixNano())
					s.asked.Store(now.UnixNano())
				}
				return sc, nil
			}
			full, stuck := sc.client == s, sc.stuck()
			sc.mu.Unlock()
			if s.gone.Load() {
				return nil, errLost
			}
			if full {
				if stuck {
					return nil, fatal("54000", "too many messages among the data of a COPY", "", "")
				}
				if err := s.await(sc, func() bool { return sc.full() }); err != nil {
					return nil, err
				}
				continue
			}
			s.server = nil
		}
		switch typ {
		case 'H', 'd', 'c', 'f':
			return nil, nil
		}
		if err := s.borrow(ctx); err != nil {
			return nil, err
		}
	}
}

// settle waits until the server has either begun a COPY from the client, which
// swallows the Sync that the client sends now, or can begin none before it. If both
// were on their way together and the COPY failed, nobody could tell whether the Sync
// still counts.
func (s *session) settle() (swallowed bool, err error) {
	s.mayCopy = false
	sc := s.server
	if sc == nil {
		return false, nil
	}
	if err := s.await(sc, func() bool { return !sc.copyIn && sc.owed.executes() }); err != nil {
		return false, err
	}
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if sc.client != s || !sc.copyIn || sc.fed || sc.owed.len() > 1 {
		return false, nil
	}
	s.mayCopy = true
	return true, nil
}

// full tells whether the server owes so much that nothing more may be sent. The
// caller holds mu.
func (sc *serverConn) full() bool {
	return sc.owed.len() >= maxOwed || sc.owed.size > sc.pool.p.cfg.MaxMessage
}

// await makes the server answer all that it was sent, and waits while a condition
// holds, which is looked at under sc.mu, or until the connection is lost, or the
// server waits for the client. The error says that the client has left.
func (s *session) await(sc *serverConn, while func() bool) error {
	// Without it the server could keep its answers.
	flush, err := (&pgproto3.Flush{}).Encode(nil)
	if err != nil {
		return err
	}
	if err := s.flush(flush); err != nil {
		return err
	}
	var left error
	waits := func() bool {
		return left == nil && sc.client == s && !sc.dead && !sc.uncertain && !sc.stuck() && while()
	}
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if !waits() {
		return nil
	}
	stop := s.watch(func(err error) {
		sc.mu.Lock()
		defer sc.mu.Unlock()
		left = err
		sc.answer.Broadcast()
	})
	for waits() {
		sc.answer.Wait()
	}
	sc.mu.Unlock()
	stop()
	sc.mu.Lock()
	return left
}

// watch reads ahead from the client until stop is called, and calls left if the
// client leaves. What it has sent beyond the buffer's size is not read, nor its
// leaving after that.
func (s *session) watch(left func(error)) (stop func()) {
	_ = s.conn.SetReadDeadline(time.Time{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if err := s.in.ahead(); err != nil {
			left(err)
		}
	}()
	return func() {
		s.wake()
		<-watched
	}
}

// borrow gets a server connection from the pool.
func (s *session) borrow(ctx context.Context) error {
	start := time.Now()
	for {
		sc := s.pool.take()
		if sc == nil {
			var err error
			if sc, err = s.queue(ctx); err != nil {
				return err
			}
		}
		sc.mu.Lock()
		if sc.dead {
			sc.mu.Unlock()
			continue
		}
		sc.client = s
		s.server = sc
		s.toServer = s.toServer[:0]
		sc.mu.Unlock()
		s.p.counters.borrow.add(time.Since(start))
		return nil
	}
}

// queue waits for a server connection, and stops waiting when the client leaves.
func (s *session) queue(ctx context.Context) (*serverConn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := s.watch(cancel)
	defer stop()
	return s.pool.get(ctx)
}

// flush writes what is buffered, and more, to the server. Then it gives the
// connection back if everything was answered meanwhile.
func (s *session) flush(more ...[]byte) error {
	sc := s.server
	if sc == nil || (len(s.toServer) == 0 && len(more) == 0) {
		return nil
	}
	_, err := sc.conn.Write(s.toServer)
	for _, b := range more {
		if err == nil {
			_, err = sc.conn.Write(b)
		}
	}
	s.toServer = s.toServer[:0]
	if err != nil {
		// What the server has said before comes first.
		_ = sc.conn.SetReadDeadline(time.Now().Add(linger))
		<-sc.done
		return errLost
	}
	sc.mu.Lock()
	if sc.client != s {
		sc.mu.Unlock()
		return nil
	}
	sc.unflushed = false
	free := sc.free()
	if free {
		sc.client = nil
	}
	sc.mu.Unlock()
	s.p.signal()
	if free {
		s.server = nil
		sc.pool.put(sc)
	}
	return nil
}
