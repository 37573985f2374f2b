package rdsproxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgproto3"
)

func header(typ byte, length uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{typ}, length)
}

func packet(length uint32, body ...byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, length), body...)
}

// TestBadInputCostsItsClientOnly sends each input in place of a startup packet, of a
// password, of a message, and of one within a transaction, while other clients of
// the same pool work.
func TestBadInputCostsItsClientOnly(t *testing.T) {
	t.Parallel()
	const limit = 1 << 20
	p := startProxy(t, Config{PoolSize: 2, MaxMessage: limit, MessageTimeout: time.Second})
	impatient := startProxy(t, Config{StartupTimeout: 2 * time.Second})
	query(t, p.direct(t), "CREATE TABLE rows (id int)")
	witness := p.wire(t)
	witness.sql("BEGIN")

	startups := map[string][]byte{
		"nothing":             nil,
		"garbage":             []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"tls":                 []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
		"half a packet":       packet(50, 0, 3, 0, 0, 'u'),
		"length 0":            packet(0),
		"length 4":            packet(4),
		"length 7":            packet(7, 0, 3, 0),
		"length 10005":        packet(10005, 0, 3, 0, 0),
		"gigantic length":     packet(0x7fffffff, 0, 3, 0, 0),
		"negative length":     packet(0xffffffff, 0, 3, 0, 0),
		"protocol 2":          packet(8, 0, 2, 0, 0),
		"unknown request":     packet(8, 4, 210, 22, 40),
		"no parameters":       packet(9, 0, 3, 0, 0, 0),
		"empty parameters":    packet(8, 0, 3, 0, 0),
		"parameter, no value": packet(13, 0, 3, 0, 0, 'u', 's', 'e', 'r', 0),
		"no user":             encode(t, &pgproto3.StartupMessage{ProtocolVersion: 196608, Parameters: map[string]string{"database": "x"}}),
		"many ssl requests":   bytes.Repeat(request(sslCode), 100),
		"message":             encode(t, &pgproto3.Query{String: "SELECT 1"}),
	}
	for name, b := range startups {
		t.Run("startup/"+name, func(t *testing.T) {
			t.Parallel()
			w := rawClient(t, impatient)
			w.write(b)
			w.wantEnd()
		})
	}

	passwords := map[string][]byte{
		"nothing":             nil,
		"query":               encode(t, &pgproto3.Query{String: "SELECT 1"}),
		"terminate":           encode(t, &pgproto3.Terminate{}),
		"too long":            header('p', maxAuthMessage+1),
		"gigantic length":     header('p', 0x7fffffff),
		"length 3":            header('p', 3),
		"no mechanism":        header('p', 4),
		"other mechanism":     encode(t, &pgproto3.SASLInitialResponse{AuthMechanism: "SCRAM-SHA-256-PLUS", Data: []byte("p=tls-server-end-point,,n=,r=x")}),
		"password":            encode(t, &pgproto3.PasswordMessage{Password: "pith"}),
		"malformed scram":     encode(t, &pgproto3.SASLInitialResponse{AuthMechanism: mechanism, Data: []byte("n,,hello")}),
		"channel binding":     encode(t, &pgproto3.SASLInitialResponse{AuthMechanism: mechanism, Data: []byte("p=tls-unique,,n=,r=abc")}),
		"empty scram":         encode(t, &pgproto3.SASLInitialResponse{AuthMechanism: mechanism}),
		"mechanism, no data":  append(header('p', 4+14), mechanism+"\x00"...),
		"half a message":      header('p', 100),
		"scram, then nothing": encode(t, &pgproto3.SASLInitialResponse{AuthMechanism: mechanism, Data: []byte("n,,n=,r=abcdefgh")}),
		"scram, then garbage": encode(t, &pgproto3.SASLInitialResponse{AuthMechanism: mechanism, Data: []byte("n,,n=,r=abcdefgh")}, &pgproto3.SASLResponse{Data: []byte("garbage")}),
		"scram, forged": encode(t, &pgproto3.SASLInitialResponse{AuthMechanism: mechanism, Data: []byte("n,,n=,r=abcdefgh")},
			&pgproto3.SASLResponse{Data: []byte("c=biws,r=abcdefgh,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")}),
	}
	for name, b := range passwords {
		t.Run("password/"+name, func(t *testing.T) {
			t.Parallel()
			w := rawClient(t, impatient)
			w.startup(map[string]string{"user": "pith", "database": p.database})
			w.answer('R', 1)
			w.write(b)
			w.wantEnd()
		})
	}

	messages := map[string]struct {
		b    []byte
		code string
	}{
		"unknown type":       {header('!', 4), "08P01"},
		"zeros":              {make([]byte, 100), "08P01"},
		"server's message":   {header('Z', 5), "08P01"},
		"password":           {encode(t, &pgproto3.PasswordMessage{Password: "pith"}), "08P01"},
		"length 0":           {header('Q', 0), "08P01"},
		"length 3":           {header('Q', 3), "08P01"},
		"negative length":    {header('Q', 0xffffffff), "08P01"},
		"gigantic length":    {header('Q', 0x7fffffff), "54000"},
		"over the limit":     {header('Q', limit), "54000"},
		"half a header":      {[]byte{'Q', 0, 0}, "08P01"},
		"half a message":     {append(header('Q', 100), "SELECT"...), "08P01"},
		"query without end":  {append(header('Q', 4+6), "SELECT"...), "08P01"},
		"empty query body":   {header('Q', 4), "08P01"},
		"parse without end":  {append(header('P', 4+3), "abc"...), "08P01"},
		"parse, bad count":   {append(header('P', 4+4), 0, 0, 0xff, 0xff), "08P01"},
		"bind without names": {append(header('B', 4+1), 0), "08P01"},
		"empty describe":     {header('D', 4), "08P01"},
		"close without name": {append(header('C', 4+2), 'S', 'x'), "08P01"},
		"statements over the limit": {bytes.Join(slices.Collect(func(yield func([]byte) bool) {
			for i := range 20 {
				if !yield(encode(t, prep(fmt.Sprint(i), "SELECT '"+strings.Repeat("x", limit/10)+"'"))) {
					return
				}
			}
		}), nil), "54000"},
	}
	for name, m := range messages {
		t.Run("message/"+name, func(t *testing.T) {
			w := p.wire(t)
			w.write(m.b)
			w.wantFatal(m.code)
		})
		t.Run("message in a transaction/"+name, func(t *testing.T) {
			w := p.wire(t)
			w.sql("BEGIN")
			w.sql("INSERT INTO rows VALUES (1)")
			w.write(m.b)
			w.wantFatal(m.code)
		})
	}

	witness.sql("INSERT INTO rows VALUES (2)")
	witness.sql("COMMIT")
	if got := query(t, p.connect(t), "SELECT string_agg(id::text, ' ') FROM rows")[0]; got != "2" {
		t.Errorf("rows %s are left, want 2", got)
	}
}

// TestClientThatNeverReadsIsDropped asks for more than all buffers hold.
func TestClientThatNeverReadsIsDropped(t *testing.T) {
	t.Parallel()
	server(t)
	p := startProxy(t, Config{PoolSize: 2, TLS: serverTLS(t), WriteTimeout: 300 * time.Millisecond})
	other := p.wire(t)
	for _, options := range []string{"sslmode=disable", "sslmode=require"} {
		w := openWire(t, p.url("pith", options))
		w.send(&pgproto3.Query{String: "SELECT repeat('x', 1000000) FROM generate_series(1, 1000)"})
		w.answer('T', 1) // it has begun
		for range 20 {
			other.wantOne("SELECT 1")
		}
		p.waitPool(t, func(pl *pool) bool { return len(pl.all) == 1 })
		w.wantEnd()
	}
}

// TestPipelineThatIsNotAnsweredIsBounded has no Sync, and a server that takes all and
// says nothing: the proxy must hold the client back, or remember each message.
func TestPipelineThatIsNotAnsweredIsBounded(t *testing.T) {
	t.Parallel()
	warm(t)
	flight := encode(t, slices.Repeat(msgs(prep("", "SELECT 1")), 2*maxOwed)...)
	synctest.Test(t, func(t *testing.T) {
		p, err := New(Config{Upstream: "postgres://127.0.0.1:1/", Users: map[string]string{"pith": "pith"}, PoolSize: 1})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		p.ctx = ctx
		toServer, atServer := net.Pipe()
		served := make(chan struct{})
		go func() {
			defer close(served)
			_, _ = io.Copy(io.Discard, atServer)
		}()
		pl := p.enter(poolKey{"pith", "pith"})
		sc := newServerConn(pl, toServer, toServer)
		pl.dialing++
		pl.add(ctx, sc)

		toClient, atClient := net.Pipe()
		s := &session{p: p, conn: toClient, view: map[string]*stmt{}, pool: pl, user: "pith", database: "pith"}
		s.in = &frameReader{r: toClient, start: clientBuffer, keep: clientKeep, limit: p.cfg.MaxMessage}
		run := make(chan error, 1)
		go func() { run <- s.run(ctx) }()
		sent := make(chan int, 1)
		go func() {
			n, _ := atClient.Write(flight)
			sent <- n
		}()
		synctest.Wait() // until nothing moves
		sc.mu.Lock()
		owed := sc.owed.len()
		sc.mu.Unlock()
		if owed != maxOwed {
			t.Errorf("%d answers are remembered, want %d", owed, maxOwed)
		}
		_ = atServer.Close()
		_ = atClient.Close()
		if n := <-sent; n == len(flight) {
			t.Error("the client was not held back")
		}
		s.end(<-run)
		_ = toClient.Close()
		cancel()
		p.closeAll()
		<-served
		p.wg.Wait()
	})
}

func TestPipelineThatIsNeverReadCostsItsClientOnly(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 1, WriteTimeout: 300 * time.Millisecond})
	w := p.wire(t)
	if err := w.conn.SetDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
	flight := encode(t, slices.Repeat(msgs(prep("", "SELECT 1")), 1000)...)
	for range 200 {
		if _, err := w.conn.Write(flight); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("the client is held back for ever")
		} else if err != nil {
			break
		}
	}
	_ = w.conn.Close()
	p.wire(t).wantOne("SELECT 1")
}

func TestLongPipelineWithoutSyncIsAnswered(t *testing.T) {
	t.Parallel()
	const n = 3*maxOwed + 7
	p := startProxy(t, Config{PoolSize: 1})
	w := p.wire(t)
	sent := make(chan error, 1)
	b := encode(t, append(slices.Repeat(msgs(prep("", "SELECT 1")), n), syncMsg)...)
	go func() {
		_, err := w.conn.Write(b)
		sent <- err
	}()
	if got := w.answer('Z', 1); len(got) != n+1 {
		t.Errorf("%d answers, want %d", len(got), n+1)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

func TestIdleClientIsDropped(t *testing.T) {
	t.Parallel()
	const idle = 2 * time.Second
	p := startProxy(t, Config{PoolSize: 3, IdleClientTimeout: idle})
	for name, before := range map[string]string{"at once": "", "after a query": "SELECT 1", "pinned": "SET work_mem = '1MB'"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			w := p.wire(t)
			if before != "" {
				w.sql(before)
			}
			w.wantFatal("57P05")
			if d := time.Since(start); d < idle {
				t.Errorf("dropped after %v, want at least %v", d, idle)
			}
		})
	}
}

func TestClientInATransactionIsNotIdle(t *testing.T) {
	t.Parallel()
	const idle = time.Second
	p := startProxy(t, Config{PoolSize: 2, IdleClientTimeout: idle})
	t.Run("open", func(t *testing.T) {
		t.Parallel()
		w := p.wire(t)
		w.sql("BEGIN; SELECT 1")
		w.wantSilence(2 * idle)
		if diff := cmp.Diff([]string{`C "COMMIT\x00"`, `Z "I"`}, w.sql("COMMIT")); diff != "" {
			t.Errorf("answer (-want +got):\n%s", diff)
		}
	})
	t.Run("busy", func(t *testing.T) {
		t.Parallel()
		p.wire(t).wantOne(fmt.Sprintf("SELECT pg_sleep(%f)", (2 * idle).Seconds()))
	})
}

// TestPlaintextBeforeTLSIsNotTaken: what comes in one piece with the request must not
// pass for what was sent after the handshake.
func TestPlaintextBeforeTLSIsNotTaken(t *testing.T) {
	t.Parallel()
	server(t)
	p := startProxy(t, Config{TLS: serverTLS(t)})
	w := rawClient(t, p)
	b := append(request(sslCode), encode(t, &pgproto3.StartupMessage{ProtocolVersion: 196608, Parameters: map[string]string{"user": "pith"}})...)
	w.write(b)
	var answer [1]byte
	if _, err := w.conn.Read(answer[:]); err != nil || answer[0] != 'S' {
		t.Fatalf("answered %q (%v)", answer, err)
	}
	if err := tls.Client(w.conn, &tls.Config{RootCAs: shared.pool, ServerName: "localhost", MinVersion: tls.VersionTLS12}).HandshakeContext(t.Context()); err == nil {
		t.Error("handshake succeeded")
	}
}

func TestManyIdleClients(t *testing.T) {
	t.Parallel()
	const clients = 500
	p := startProxy(t, Config{PoolSize: 2})
	var wires []*wire
	for range clients {
		wires = append(wires, p.wire(t))
	}
	for _, w := range wires {
		w.wantOne("SELECT 1")
	}
	m := p.Metrics()
	if m.ClientConnections != clients || m.DatabaseConnections < 1 || m.DatabaseConnections > 2 {
		t.Errorf("%d clients on %d server connections", m.ClientConnections, m.DatabaseConnections)
	}
}
