package rdsproxy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"
)

// TestStatementsOnTheServerAreBounded prepares more than the server is to hold, and
// uses all of them.
func TestStatementsOnTheServerAreBounded(t *testing.T) {
	t.Parallel()
	const n = maxOwned + 200
	p := startProxy(t, Config{PoolSize: 1})
	w, other := p.wire(t), p.wire(t)
	other.send(prep("s1", "SELECT 'other'"), syncMsg)
	other.answer('Z', 1)
	for from := 0; from < n; from += 100 {
		var flight []pgproto3.FrontendMessage
		for i := from; i < from+100; i++ {
			flight = append(flight, prep(fmt.Sprintf("s%d", i), fmt.Sprintf("SELECT 'number %d'", i)))
		}
		w.send(append(flight, syncMsg)...)
		w.answer('Z', 1)
	}
	var held int
	if _, err := fmt.Sscanf(other.sql("SELECT count(*) FROM pg_prepared_statements")[1], `D "\x00\x01\x00\x00\x00\x04%d"`, &held); err != nil || held > maxOwned {
		t.Errorf("the server holds %d statements (%v), want at most %d", held, err, maxOwned)
	}
	for i := range n {
		w.send(bind(fmt.Sprintf("s%d", i)), do(), syncMsg)
		if got := strings.Join(w.answer('Z', 1), " "); !strings.Contains(got, fmt.Sprintf("number %d\"", i)) {
			t.Fatalf("statement %d: got %s", i, got)
		}
	}
	other.send(bind("s1"), do(), syncMsg)
	if got := strings.Join(other.answer('Z', 1), " "); !strings.Contains(got, "other") {
		t.Errorf("the other client's statement: got %s", got)
	}
}

// TestConnectionStaysUntilTheSyncAfterCopy: the Sync in the same flight as the COPY is
// swallowed by it, so that only the one after the data ends the transaction.
func TestConnectionStaysUntilTheSyncAfterCopy(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 1})
	query(t, p.direct(t), corpusSchema)
	for name, begin := range map[string][]pgproto3.FrontendMessage{
		"sync with the copy": msgs(prep("", "COPY strict FROM STDIN"), bind(""), do(), syncMsg),
		"sync in the data":   msgs(prep("", "COPY strict FROM STDIN"), bind(""), do(), data("5\n"), syncMsg),
	} {
		t.Run(name, func(t *testing.T) {
			w, other := p.wire(t), p.wire(t)
			w.send(begin...)
			w.answer('G', 1)
			w.send(data("1\n"), done, flushMsg)
			w.answer('C', 1)
			other.send(&pgproto3.Query{String: "SELECT 'rows ' || count(*) FROM strict WHERE id = 1"})
			p.waitQueued(t, 1)
			w.send(syncMsg)
			w.answer('Z', 1)
			if got := strings.Join(other.answer('Z', 1), " "); !strings.Contains(got, "rows 1") {
				t.Errorf("the other client got %s", got)
			}
			query(t, p.direct(t), "TRUNCATE strict")
		})
	}
}

// TestConnectionStaysWhileAnythingIsOpen: a second client must wait.
func TestConnectionStaysWhileAnythingIsOpen(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 1})
	query(t, p.direct(t), corpusSchema)
	for name, test := range map[string]struct {
		send  []pgproto3.FrontendMessage
		until byte
		close []pgproto3.FrontendMessage
	}{
		"transaction":         {msgs(&pgproto3.Query{String: "BEGIN"}), 'Z', msgs(&pgproto3.Query{String: "COMMIT"})},
		"aborted transaction": {msgs(&pgproto3.Query{String: "BEGIN; SELECT 1/0"}), 'Z', msgs(&pgproto3.Query{String: "ROLLBACK"})},
		"parse, no sync":      {msgs(prep("", "SELECT 1"), flushMsg), '1', msgs(syncMsg)},
		"execute, no sync":    {append(run("SELECT 1"), flushMsg), 'C', msgs(syncMsg)},
		"error, no sync":      {msgs(prep("", "SELEC"), flushMsg), 'E', msgs(syncMsg)},
		"copy":                {msgs(&pgproto3.Query{String: "COPY strict FROM STDIN"}), 'G', msgs(done)},
	} {
		t.Run(name, func(t *testing.T) {
			w, other := p.wire(t), p.wire(t)
			w.send(test.send...)
			w.read(test.until, 1)
			other.send(&pgproto3.Query{String: "SELECT 1"})
			p.waitQueued(t, 1)
			w.send(test.close...)
			w.answer('Z', 1)
			other.answer('Z', 1)
		})
	}
}
