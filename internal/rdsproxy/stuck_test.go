package rdsproxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgproto3"
)

// constructs are those of the proxy's findings, and whether they pin.
func (p *testProxy) constructs() []string {
	var list []string
	for _, f := range p.Findings() {
		list = append(list, fmt.Sprintf("%s %v", f.Construct, f.Pinned))
	}
	return list
}

// TestClientThatLeavesAnOpenCopyFreesItsConnection: in a COPY the server answers
// nothing, so nobody may wait for its answers.
func TestClientThatLeavesAnOpenCopyFreesItsConnection(t *testing.T) {
	t.Parallel()
	begin := msgs(&pgproto3.Query{String: "COPY strict FROM STDIN"}, data("1\n"))
	for name, flight := range map[string][]pgproto3.FrontendMessage{
		"pinning message": append(slices.Clone(begin), syncMsg, &pgproto3.Query{String: "SET work_mem = '1MB'"}),
		"unnamed bind":    append(slices.Clone(begin), syncMsg, bind("")),
		"many syncs":      append(slices.Clone(begin), slices.Repeat(msgs(syncMsg), maxOwed+4000)...),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startProxy(t, Config{PoolSize: 2})
			query(t, p.direct(t), corpusSchema)
			for range 2 {
				w := p.wire(t)
				w.send(flight...)
				w.read('G', 1)
				_ = w.conn.Close()
			}
			if got := query(t, p.connect(t), "SELECT count(*) FROM strict")[0]; got != "0" {
				t.Errorf("%s rows were copied", got)
			}
		})
	}
}

// TestMessageThatBreaksACopyIsAnsweredAsDirectly sends it after a Sync, which the
// COPY swallows.
func TestMessageThatBreaksACopyIsAnsweredAsDirectly(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 1})
	query(t, p.direct(t), corpusSchema)
	play := func(w *wire) []string {
		w.send(&pgproto3.Query{String: "COPY strict FROM STDIN"}, data("1\n"), syncMsg, &pgproto3.Query{String: "SET work_mem = '1MB'"})
		got := w.read('Z', 1)
		w.send(&pgproto3.Query{String: "SELECT 'afterwards'"})
		return append(got, w.read('Z', 1)...)
	}
	proxied := p.wire(t)
	if diff := cmp.Diff(play(openWire(t, server(t).URL(p.database))), play(proxied)); diff != "" {
		t.Errorf("answers differ (-direct +proxy):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"SET true", lostCopy + " true"}, p.constructs()); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
}

func TestManySyncsInACopyEndTheSession(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 1})
	query(t, p.direct(t), corpusSchema)
	w := p.wire(t)
	w.send(&pgproto3.Query{String: "COPY strict FROM STDIN"}, data("1\n"))
	w.send(slices.Repeat(msgs(syncMsg), maxOwed+4000)...)
	w.wantFatal("54000")
}

// TestClientThatLeavesWhileTheServerWorksIsNoticed: the statement that pins must wait
// for what is being executed, whose client is gone.
func TestClientThatLeavesWhileTheServerWorksIsNoticed(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 1})
	w := p.wire(t)
	direct := p.direct(t)
	query(t, direct, corpusSchema)
	query(t, direct, "BEGIN; LOCK TABLE strict")
	w.send(append(run("TABLE strict"), syncMsg, &pgproto3.Query{String: "SET work_mem = '1MB'"})...)
	p.waitPool(t, func(*pool) bool { return p.FindingCount() == 1 })
	_ = w.conn.Close()
	p.waitPool(t, func(pl *pool) bool {
		for sc := range pl.all {
			sc.mu.Lock()
			left := sc.client == nil
			sc.mu.Unlock()
			if left {
				return true
			}
		}
		return len(pl.all) == 0
	})
}

// TestRowsAreNeverInterrupted has the client break the protocol while a row of many
// pieces is on its way to it.
func TestRowsAreNeverInterrupted(t *testing.T) {
	t.Parallel()
	const size = 4 << 20
	p := startProxy(t, Config{PoolSize: 1})
	for range 20 {
		w := p.wire(t)
		w.send(&pgproto3.Query{String: fmt.Sprintf("SELECT repeat('x', %d) FROM generate_series(1, 5)", size)})
		stream := make([]byte, size/4)
		if _, err := io.ReadFull(w.in.r, stream); err != nil {
			t.Fatal(err)
		}
		w.write([]byte("!what is this?"))
		rest, _ := io.ReadAll(w.in.r) // it may end by a reset
		stream = slices.Concat(stream, rest)
		for len(stream) >= headerSize {
			n := min(1+int(binary.BigEndian.Uint32(stream[1:])), len(stream))
			const columns = headerSize + 2 + 4
			if stream[0] == 'D' && n > columns && len(bytes.Trim(stream[columns:n], "x")) > 0 {
				t.Fatalf("within a row: %q", bytes.Trim(stream[columns:n], "x"))
			}
			stream = stream[n:]
		}
	}
}

func TestWhoQueuesAfterAFailedDialDials(t *testing.T) {
	t.Parallel()
	p, err := New(Config{Upstream: "postgres://127.0.0.1:1/", Users: map[string]string{"pith": "pith"}, PoolSize: 1, BorrowTimeout: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	p.ctx = t.Context()
	pl := p.enter(poolKey{"pith", "pith"})
	pl.dialing = 1
	if !pl.failed(t.Context(), errors.New("refused")) {
		t.Fatal("nobody waits, and it dials again")
	}
	if _, err := pl.get(t.Context()); err == nil {
		t.Fatal("connected to nothing")
	}
	p.wg.Wait()
	if p.counters.dials.Load() == 0 {
		t.Error("a client waited, and nobody dialed")
	}
}

func TestTextOutsideTheGrammarIsAFinding(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 1})
	query(t, p.direct(t), "ALTER DATABASE "+p.database+" SET standard_conforming_strings = off")
	w := p.wire(t)
	const text = `SELECT 'it\'s'; SET work_mem = '1MB'`
	if got := w.sql(text); len(got) < 2 || !strings.HasPrefix(got[len(got)-2], `C "SET`) {
		t.Fatalf("the server answers %q", got)
	}
	want := []Finding{{Construct: "text outside PostgreSQL's grammar", Statement: text, User: "pith", Database: p.database}}
	if diff := cmp.Diff(want, p.Findings()); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
}

// TestHiddenCommandsBreakStatementsOnce changes the names on the server connection
// without the proxy seeing it.
func TestHiddenCommandsBreakStatementsOnce(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		hidden string
		code   string
		use    []pgproto3.FrontendMessage
	}{
		"deallocate": {"DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$", "26000", msgs(bind("s1"), do(), syncMsg)},
		"prepare":    {"DO $$ BEGIN EXECUTE 'PREPARE s2 AS SELECT 3'; END $$", "42P05", msgs(prep("s2", "SELECT 'first'"), bind("s2"), do(), shut('S', "s2"), syncMsg)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startProxy(t, Config{PoolSize: 1})
			victim, other := p.wire(t), p.wire(t)
			victim.send(prep("s1", "SELECT 'first'"), syncMsg)
			victim.read('Z', 1)
			other.sql(test.hidden)
			use := func() string {
				victim.send(test.use...)
				return strings.Join(victim.read('Z', 1), " ")
			}
			if got := use(); !strings.Contains(got, test.code) {
				t.Fatalf("nothing was hidden: got %s", got)
			}
			for range 3 {
				if got := use(); !strings.Contains(got, "first") {
					t.Fatalf("the statements are broken for good: got %s", got)
				}
			}
		})
	}
}

// TestConnectionWithUncertainAnswersCountsAsPinned has a COPY fail by its data, and not
// before all that follows the data was forwarded.
func TestConnectionWithUncertainAnswersCountsAsPinned(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 1})
	holder := p.direct(t)
	query(t, holder, corpusSchema+`
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN LOCK TABLE things IN ACCESS SHARE MODE; RAISE EXCEPTION 'refused'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON strict FOR EACH ROW EXECUTE FUNCTION refuse()`)
	query(t, holder, "BEGIN; LOCK TABLE things")
	w := p.wire(t)
	w.send(&pgproto3.Query{String: "COPY strict FROM STDIN"})
	w.read('G', 1)
	w.send(data("1\n"), syncMsg, done)
	for deadline := time.Now().Add(time.Minute); !p.dataEnded(); {
		if time.Now().After(deadline) {
			t.Fatal("the end of the data was not forwarded")
		}
		query(t, holder, "SELECT pg_sleep(0.005)")
	}
	query(t, holder, "COMMIT")
	w.read('Z', 1)
	if diff := cmp.Diff([]string{lostCopy + " true"}, p.constructs()); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
	if n := p.Metrics().DatabaseConnectionsCurrentlySessionPinned; n != 1 {
		t.Errorf("%d sessions are pinned", n)
	}
}

// dataEnded tells whether the end of a COPY's data was forwarded and not yet answered.
func (p *testProxy) dataEnded() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pl := range p.pools {
		pl.mu.Lock()
		for sc := range pl.all {
			sc.mu.Lock()
			ended := slices.ContainsFunc(sc.owed.waiting(), func(a answer) bool { return a.kind == endOfData })
			sc.mu.Unlock()
			if ended {
				pl.mu.Unlock()
				return true
			}
		}
		pl.mu.Unlock()
	}
	return false
}

func TestStatementsOfAPinnedClientAreAllKept(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 1})
	w := p.wire(t)
	w.sql("SET work_mem = '1MB'")
	const n = maxOwned + 50
	for i := range n {
		w.send(prep(fmt.Sprintf("s%d", i), "SELECT 1"), syncMsg)
		w.read('Z', 1)
	}
	got := strings.Join(w.sql("SELECT 'held ' || count(*) FROM pg_prepared_statements"), " ")
	if !strings.Contains(got, fmt.Sprintf("held %d\"", n)) {
		t.Errorf("the server holds %s, want %d", got, n)
	}
}

// TestUnnamedStatementOfAnEarlierTransaction does not hang on how fast the answers
// come, or on the connection.
func TestUnnamedStatementOfAnEarlierTransaction(t *testing.T) {
	t.Parallel()
	const late = "unnamed statement of an earlier transaction false"
	use := msgs(bind(""), do(), syncMsg)
	parse := msgs(prep("", "SELECT 1"), syncMsg)
	begin, commit := msgs(prep("", "BEGIN"), bind(""), do(), syncMsg), msgs(prep("", "COMMIT"), bind(""), do(), syncMsg)
	for name, test := range map[string]struct {
		messages []pgproto3.FrontendMessage
		want     []string
	}{
		"one transaction":       {flight(run("SELECT 1"), use), nil},
		"same flight":           {flight(msgs(prep("", "SELECT 1")), msgs(bind(""), do(), bind(""), do(), syncMsg)), nil},
		"next transaction":      {flight(parse, use), []string{late}},
		"within a transaction":  {flight(begin, parse, use, use, commit), nil},
		"after the transaction": {flight(begin, parse, use, msgs(&pgproto3.Query{String: "SELECT 1"}), parse, commit, begin, parse, commit, parse, begin, parse, use, commit, parse, use), []string{late}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			syncs := 0
			for _, m := range test.messages {
				switch m.(type) {
				case *pgproto3.Sync, *pgproto3.Query:
					syncs++
				}
			}
			for _, pace := range []string{"at once", "one by one"} {
				p := startProxy(t, Config{PoolSize: 1})
				w := p.wire(t)
				if pace == "at once" {
					w.send(test.messages...)
					w.read('Z', syncs)
				} else {
					for _, m := range test.messages {
						w.send(m)
						switch m.(type) {
						case *pgproto3.Sync, *pgproto3.Query:
							w.read('Z', 1)
						}
					}
				}
				if diff := cmp.Diff(test.want, p.constructs()); diff != "" {
					t.Errorf("%s: findings (-want +got):\n%s", pace, diff)
				}
			}
		})
	}
}

// TestServerConnectionsWithoutClientsEnd also shows that those of other pools stay.
func TestServerConnectionsWithoutClientsEnd(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 2, IdleServerTimeout: 50 * time.Millisecond, Users: map[string]string{"pith": "pith", "by_scram": "secret of by_scram"}})
	stays := p.connect(t)
	pid := backend(t, stays)
	leaves := dial(t, p.url("by_scram", "sslmode=disable"))
	backend(t, leaves)
	hangUp(t, leaves)
	ctx := deadline(t)
	for p.Metrics().DatabaseConnections > 1 {
		select {
		case <-p.changed:
		case <-ctx.Done():
			t.Fatal("the server connection stays for ever")
		}
	}
	if got := backend(t, stays); got != pid {
		t.Errorf("process %s, want %s: a pool with a client lost its connection", got, pid)
	}
	again := dial(t, p.url("by_scram", "sslmode=disable"))
	backend(t, again)
}

func TestEmptySecretsAreRefused(t *testing.T) {
	t.Parallel()
	if _, err := New(Config{Upstream: "postgres://127.0.0.1:1/", Users: map[string]string{"pith": ""}}); err == nil {
		t.Error("an empty password was taken")
	}
}
