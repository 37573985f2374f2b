package rdsproxy

import (
	"strings"
	"sync"
	"unicode/utf8"
)

const (
	// maxFindings is how many findings are kept; the others are counted.
	maxFindings = 1000

	// maxStatement is how much of a statement a finding shows, in bytes.
	maxStatement = 200
)

// A Finding is something in a client's message that pins its session, or that
// nobody promises to work behind a pooler.
type Finding struct {
	// Pinned tells whether it pins.
	Pinned bool

	// Construct is what was found, such as "SET" or "named statement".
	Construct string

	// Statement is the text that it was found in, shortened; empty for a message
	// without one.
	Statement string

	// User and Database are the client's.
	User, Database string
}

// Findings returns the first 1000 findings since New, in the order in which they
// were made.
func (p *Proxy) Findings() []Finding {
	p.findings.mu.Lock()
	defer p.findings.mu.Unlock()
	return append([]Finding(nil), p.findings.list...)
}

// FindingCount returns how many findings were made since New, also those that are
// not kept.
func (p *Proxy) FindingCount() int {
	p.findings.mu.Lock()
	defer p.findings.mu.Unlock()
	return p.findings.count
}

type findingLog struct {
	mu    sync.Mutex // guards what follows
	list  []Finding
	count int
}

func (l *findingLog) add(f Finding) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count++
	if len(l.list) < maxFindings {
		l.list = append(l.list, f)
	}
}

// find records a finding in a message of the client.
func (s *session) find(pinned bool, construct, statement string) {
	f := Finding{Pinned: pinned, Construct: construct, Statement: shorten(statement), User: s.user, Database: s.database}
	s.p.findings.add(f)
	s.p.cfg.Log.Debug("finding", "pinned", f.Pinned, "construct", f.Construct, "statement", f.Statement, "user", f.User, "database", f.Database)
	if s.p.cfg.OnFinding != nil {
		s.p.cfg.OnFinding(f)
	}
}

// shorten cuts a text between two characters.
func shorten(text string) string {
	if len(text) <= maxStatement {
		return strings.Clone(text)
	}
	n := maxStatement
	for n > maxStatement-utf8.UTFMax && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n] + "…"
}
