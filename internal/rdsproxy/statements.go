package rdsproxy

import (
	"slices"

	"github.com/jackc/pgx/v5/pgproto3"
)

// maxOwned is how many prepared statements a server connection holds before some
// are closed to make room.
const maxOwned = 1000

// A stmt is a prepared statement of one client. Two of them are never the same,
// even if their texts are: what the server made of a text depends on when it did.
type stmt struct {
	parse       []byte // the message
	transaction int    // how many transactions of its client had ended when the server parsed it
}

// name makes a name stand for st, or for nothing if st is nil, in the eyes of the
// client.
func (s *session) name(name string, st *stmt) {
	if old := s.view[name]; old != nil {
		s.viewSize -= len(old.parse)
	}
	if st == nil {
		delete(s.view, name)
		return
	}
	s.viewSize += len(st.parse)
	s.view[name] = st
}

// own notes what a name stands for on the server connection.
func (sc *serverConn) own(name string, st *stmt) {
	if st == nil {
		delete(sc.owned, name)
		return
	}
	sc.owned[name] = st
}

// assign notes that a message makes a name stand for st, for the client and on the
// server. It takes effect now, and undo takes it back if the server refuses it or
// skips it.
func (sc *serverConn) assign(s *session, kind byte, name string, st *stmt) {
	if sc.skipping {
		return
	}
	a := answer{kind: kind, changes: true, name: name, oldView: s.view[name], oldOwned: sc.owned[name]}
	if st != nil {
		a.size = len(st.parse)
		if name == "" {
			a.unnamed = st
		}
	}
	sc.owe(a)
	s.name(name, st)
	sc.own(name, st)
}

// undo takes back what messages that the server did not execute have changed. Where
// a later message changes the same name, that one was right in what it assumed to
// follow, but not in what it assumed to replace.
func (sc *serverConn) undo(skipped, later []answer) {
	views, owners := map[string]*answer{}, map[string]*answer{}
	for i := range slices.Backward(later) {
		if a := &later[i]; a.changes {
			owners[a.name] = a
			if !a.quiet {
				views[a.name] = a
			}
		}
	}
	for _, a := range slices.Backward(skipped) {
		if !a.changes {
			continue
		}
		if next := owners[a.name]; next != nil {
			next.oldOwned = a.oldOwned
		} else {
			sc.own(a.name, a.oldOwned)
		}
		if a.quiet {
			sc.adopted = sc.adopted && a.optional
			continue
		}
		if next := views[a.name]; next != nil {
			next.oldView = a.oldView
		} else {
			sc.client.name(a.name, a.oldView)
		}
	}
}

// reconcile makes a name stand on the server for what it stands for in the eyes of
// the client. It appends the messages that do so to b.
func (sc *serverConn) reconcile(s *session, name string, b []byte) []byte {
	if sc.skipping || sc.uncertain {
		return b
	}
	want, have := s.view[name], sc.owned[name]
	if want == have {
		return b
	}
	if have != nil && (want == nil || name != "") {
		b = sc.discard(name, b)
	}
	if want == nil {
		return b
	}
	b = sc.room(s, name, b)
	sc.owe(answer{kind: 'P', quiet: true, changes: true, name: name, oldOwned: sc.owned[name]})
	sc.own(name, want)
	return append(b, want.parse...)
}

// discard closes what a name stands for on the server.
func (sc *serverConn) discard(name string, b []byte) []byte {
	sc.owe(answer{kind: 'C', quiet: true, changes: true, name: name, oldOwned: sc.owned[name]})
	delete(sc.owned, name)
	// A name came in a message: it holds no zero, and fits.
	b, _ = (&pgproto3.Close{ObjectType: 'S', Name: name}).Encode(b)
	return b
}

// room closes a statement of another client, or else any, if there are too many. One
// that is adopted holds its client's only, whose they are to close.
func (sc *serverConn) room(s *session, except string, b []byte) []byte {
	if sc.skipping || sc.uncertain || sc.adopted || len(sc.owned) < maxOwned {
		return b
	}
	victim, found := "", false
	for name, st := range sc.owned {
		if name == except || sc.pending(name) {
			continue
		}
		victim, found = name, true
		if s.view[name] != st {
			break
		}
	}
	if found {
		b = sc.discard(victim, b)
	}
	return b
}

// adopt prepares a server connection for a client that keeps it from now on: it
// holds all statements of the client and no others, as SQL's PREPARE, DEALLOCATE
// and DISCARD would find them without a proxy.
func (sc *serverConn) adopt(s *session, b []byte) []byte {
	if sc.skipping || sc.uncertain {
		return b
	}
	sc.adopted = true
	// One that cannot be parsed any more would take the client's transaction with
	// it. Within one they follow when they are used.
	clean := sc.tx == 'I' && !sc.unsynced && sc.owed.len() == 0
	for name, st := range sc.owned {
		if s.view[name] != st {
			b = sc.discard(name, b)
		}
	}
	if !clean {
		return b
	}
	for name, st := range s.view {
		if sc.owned[name] == st {
			continue
		}
		b = sc.reconcile(s, name, b)
		sc.owed.last().optional = true
		sc.owe(answer{kind: 'S', quiet: true})
		b, _ = (&pgproto3.Sync{}).Encode(b)
	}
	return b
}
