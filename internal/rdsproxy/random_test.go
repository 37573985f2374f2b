package rdsproxy

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgproto3"
)

// randomFlight is messages in no particular order, which leave the connection as it
// was but for prepared statements.
func randomFlight(r *rand.Rand, pins bool) []pgproto3.FrontendMessage {
	name := func() string { return []string{"", "", "s1", "s2", "s3"}[r.IntN(5)] }
	portalName := func() string { return []string{"", "", "", "p"}[r.IntN(4)] }
	text := func() string {
		texts := []string{"SELECT 'a'", "SELECT 'b' UNION ALL SELECT 'c'", "SELECT 1/0", "SELEC", "", "TABLE things", "ROLLBACK"}
		return texts[r.IntN(len(texts))]
	}
	simple := func() string {
		texts := []string{"BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT s", "COPY strict FROM STDIN", "COPY things TO STDOUT", "SELECT 1; SELECT 2", text()}
		if pins {
			texts = append(texts, "SET work_mem = '1MB'")
		}
		return texts[r.IntN(len(texts))]
	}
	var flight []pgproto3.FrontendMessage
	add := func(m ...pgproto3.FrontendMessage) { flight = append(flight, m...) }
	for range 5 + r.IntN(40) {
		switch r.IntN(16) {
		case 0, 1, 2:
			add(prep(name(), text()))
		case 3, 4, 5:
			add(portal(portalName(), name()))
		case 6:
			add(describe('S', name()))
		case 7:
			add(describe('P', portalName()))
		case 8, 9:
			add(rows(portalName(), uint32(r.IntN(3))))
		case 10:
			add(shut('S', name()))
		case 11:
			add(shut('P', portalName()))
		case 12:
			add(&pgproto3.Query{String: simple()})
		case 13:
			add(data("7\n"), done)
		case 14:
			add(flushMsg)
		case 15:
			add(run("COPY strict FROM STDIN")...)
			add(data("5\n"), []pgproto3.FrontendMessage{done, fail}[r.IntN(2)])
		}
		if r.IntN(4) == 0 {
			add(syncMsg)
		}
	}
	// Whatever is open is closed.
	return append(flight, done, syncMsg, &pgproto3.Query{String: "ROLLBACK"}, &pgproto3.Query{String: "SELECT 'end of flight'"})
}

// shows is what an error tells of the message that broke a COPY: the client's, or the
// one that the proxy has put before it.
var shows = regexp.MustCompile(`unexpected message type 0x..`)

// playFlight sends a flight in pieces, and returns the answers to all of it.
func playFlight(t *testing.T, w *wire, r *rand.Rand, flight []pgproto3.FrontendMessage) []string {
	t.Helper()
	b := encode(t, flight...)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for len(b) > 0 {
			n := min(1+r.IntN(200), len(b))
			if _, err := w.conn.Write(b[:n]); err != nil {
				return // the answers tell whether it should have ended
			}
			b = b[n:]
		}
	}()
	var got []string
	aborted := false
	for over := false; !over; {
		frames := w.read('Z', 1)
		for _, f := range frames {
			over = over || strings.Contains(f, "end of flight") || f == ended
			f = shows.ReplaceAllString(f, "")
			switch {
			case f[0] == 'Z':
				aborted = f == `Z "E"`
			case f[0] == 'E' && aborted:
				// A Parse that the proxy has put before the message failed in its stead.
				f = "E"
			}
			got = append(got, f)
		}
	}
	<-sent
	return got
}

// TestRandomPipelinesAreAnsweredAsDirectly compares what no script thought of, while
// other clients use the same server connections and names.
func TestRandomPipelinesAreAnsweredAsDirectly(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 2})
	query(t, p.direct(t), corpusSchema+corpusRows)
	stop := make(chan struct{})
	noisy := make(chan struct{})
	for i := range 2 {
		disturb := noise(p.wire(t))
		go func() {
			defer func() { noisy <- struct{}{} }()
			for n := i; ; n++ {
				select {
				case <-stop:
					return
				default:
					disturb(n)
				}
			}
		}()
	}
	defer func() {
		close(stop)
		<-noisy
		<-noisy
	}()
	const seeds = 150
	whole := 0
	for seed := range uint64(seeds) {
		direct, proxied := openWire(t, server(t).URL(p.database)), p.wire(t)
		r := rand.New(rand.NewPCG(seed, 0))
		var sent []string
		for n, open := 0, true; n < 3 && open; n++ {
			// Both see the same pieces.
			flight := randomFlight(r, seed%4 == 0)
			pieces := r.Uint64()
			want := playFlight(t, direct, rand.New(rand.NewPCG(pieces, 0)), flight)
			got := playFlight(t, proxied, rand.New(rand.NewPCG(pieces, 0)), flight)
			// A message that is none of COPY's ends the connection.
			if open = want[len(want)-1] != ended; !open && got[len(got)-1] == ended {
				// What was in flight then may not arrive.
				n := min(len(want), len(got)) - 1
				want, got = want[:n], got[:n]
			} else {
				whole++
			}
			sent = append(sent, fmt.Sprintf("flight %d:", n))
			for _, m := range flight {
				sent = append(sent, fmt.Sprintf("%T%+v", m, m))
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("seed %d, flight %d: answers differ (-direct +proxy):\n%s\nsent:\n%s", seed, n, diff, strings.Join(sent, "\n"))
			}
		}
		_ = direct.conn.Close()
		_ = proxied.conn.Close()
	}
	if whole < 2*seeds {
		t.Errorf("only %d flights of %d clients were answered to their end", whole, seeds)
	}
	// What was left behind must not stay.
	p.wire(t).wantOne("SELECT 1")
}
