// Package pinning tells what the text of a statement does to a server connection
// behind a pooler.
//
// The rules are those of Amazon's RDS User Guide, page "Avoiding pinning an RDS
// Proxy", for every engine (statements over 16 KB) and for PostgreSQL: SET commands,
// PREPARE, DISCARD, DEALLOCATE and EXECUTE, temporary sequences, tables and views,
// cursors, discarding the session's state, LISTEN, loading a library, functions such
// as nextval and setval, functions such as pg_advisory_lock, set_config. The page
// exempts the four advisory locks that a transaction holds, and calls of stored
// procedures. Pith's own contract adds what does not pin: NOTIFY, pg_notify and
// those four locks.
//
// Where the page leaves something open, the strict reading is taken:
//
//   - It names SET without saying which, so SET LOCAL, SET TRANSACTION, SET SESSION
//     CHARACTERISTICS, SET ROLE and SET CONSTRAINTS count, and so does set_config
//     that is local to a transaction. BEGIN with a mode is not a SET.
//   - It names declaring a cursor, so what needs one counts too: FETCH, MOVE, CLOSE,
//     WHERE CURRENT OF. PREPARE TRANSACTION counts as PREPARE, and UNLISTEN as LISTEN.
//   - A function counts by its name alone, in any schema and in any case: which one
//     it is would take a search path to tell, and a proxy has none.
//   - A text that is too much for the parser counts as one that pins: who cannot look
//     must assume the worst. One that is not in the grammar is an error, and no finding.
//     Mostly the server refuses it as well, but not always: strings are read as with
//     standard_conforming_strings on, and the server may be newer than the grammar. So
//     a caller must not pass over the error.
//   - A text is what is sent, not what is run. A construct counts wherever it stands:
//     in a default, in a view, in what is explained or prepared. What stands in a
//     string is not read, so neither are the bodies of functions and DO.
//
// Texts are parsed with PostgreSQL's own grammar.
package pinning

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/wasilibs/go-pgquery/parser"
)

// MaxText is the length in bytes of the longest statement text that Amazon RDS Proxy
// does not pin for.
const MaxText = 16 << 10

// A Finding is one construct in a statement's text that the pooler contract forbids.
type Finding struct {
	// Construct names it as a user would: SET LOCAL, nextval(), temporary table, text
	// of 16385 bytes.
	Construct string
	// Pins tells whether Amazon RDS Proxy pins the session for it.
	Pins bool
}

func (f Finding) String() string {
	if f.Pins {
		return f.Construct + " (pins)"
	}
	return f.Construct
}

// maxRemembered bounds the texts whose findings are kept, and with MaxText the memory
// for them.
const maxRemembered = 1024

// remembered are the findings of texts that were inspected.
var remembered = struct {
	sync.Mutex
	of map[string]verdict
}{of: map[string]verdict{}}

type verdict struct {
	found []Finding
	err   error
}

// Inspect finds, in order of appearance, what the pooler contract forbids in the text
// of one simple query or one Parse message. It may hold several statements.
//
// The error says that the text is not in PostgreSQL's grammar as this package knows it:
// what it does to a connection is unknown, though nothing is found. Or it says that the
// text is too much for the parser, its tree too deep or too large, which is a finding,
// too. A text longer than [MaxText] is one finding, and is not parsed: it pins whatever
// it holds.
//
// The first call in a process takes seconds, the first one with a text less than a
// millisecond, and the next ones with that text next to nothing. It is safe for
// concurrent use.
func Inspect(text string) ([]Finding, error) {
	if len(text) > MaxText {
		return []Finding{{fmt.Sprintf("text of %d bytes", len(text)), true}}, nil
	}
	remembered.Lock()
	v, ok := remembered.of[text]
	remembered.Unlock()
	if !ok {
		var r reader
		v.err = r.read(text)
		v.found = r.inOrder()
		remembered.Lock()
		if len(remembered.of) >= maxRemembered {
			clear(remembered.of)
		}
		// A caller's text may be a part of a much larger one.
		remembered.of[strings.Clone(text)] = v
		remembered.Unlock()
	}
	return slices.Clone(v.found), v.err
}

// A reader collects what texts hold.
type reader struct {
	// bodies: look into the bodies of functions and DO blocks, and report what we
	// keep out of our own texts.
	bodies bool
	found  []located
}

// located is a finding with its place in the text, in bytes.
type located struct {
	Finding
	at int
}

// inOrder returns what was found in its order of appearance.
func (r *reader) inOrder() (found []Finding) {
	slices.SortStableFunc(r.found, func(a, b located) int { return a.at - b.at })
	for _, f := range slices.Compact(r.found) { // the tree repeats what several columns are set to
		found = append(found, f.Finding)
	}
	return found
}

// read adds what a text holds.
func (r *reader) read(text string) error {
	answer, err := parse(text, parser.ParseToJSON)
	if errors.Is(err, errDeep) {
		r.found = append(r.found, located{Finding{"text too deep or too large to be read", true}, 0})
	}
	if err != nil {
		return err
	}
	var root struct {
		Statements []struct {
			Statement map[string]any `json:"stmt"`
			Location  int            `json:"stmt_location"`
			Length    int            `json:"stmt_len"`
		} `json:"stmts"`
	}
	if err := json.Unmarshal([]byte(answer), &root); err != nil {
		return fmt.Errorf("read the parser's answer: %w", err)
	}
	var errs []error
	for _, s := range root.Statements {
		r.walk(s.Statement, "", s.Location)
		if r.bodies {
			end := len(text)
			if s.Length > 0 {
				end = s.Location + s.Length
			}
			errs = append(errs, r.body(text[s.Location:end], s.Statement, s.Location))
		}
	}
	return errors.Join(errs...)
}
