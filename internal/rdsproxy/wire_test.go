package rdsproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// A wire is a connection after its startup, used message by message.
type wire struct {
	t    testing.TB
	conn net.Conn
	in   *frameReader
}

// openWire connects and authenticates.
func openWire(t testing.TB, url string) *wire {
	t.Helper()
	cfg, err := pgconn.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	cfg.RuntimeParams = map[string]string{"client_encoding": "UTF8"}
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		return pgproto3.NewFrontend(&boundedReader{r: r}, w)
	}
	pg, err := pgconn.ConnectConfig(deadline(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	h, err := pg.Hijack()
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{t: t, conn: h.Conn, in: &frameReader{r: h.Conn, start: 4096, keep: 4096}}
	t.Cleanup(func() { _ = w.conn.Close() })
	return w
}

func (p *testProxy) wire(t testing.TB) *wire {
	t.Helper()
	return openWire(t, p.url("pith", "sslmode=disable"))
}

// send writes messages in one piece.
func (w *wire) send(messages ...pgproto3.FrontendMessage) {
	w.t.Helper()
	w.write(encode(w.t, messages...))
}

func (w *wire) write(b []byte) {
	w.t.Helper()
	if err := w.conn.SetDeadline(time.Now().Add(testTimeout)); err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.conn.Write(b); err != nil {
		w.t.Fatalf("write: %v", err)
	}
}

func encode(t testing.TB, messages ...pgproto3.FrontendMessage) []byte {
	t.Helper()
	var b []byte
	for _, m := range messages {
		var err error
		if b, err = m.Encode(b); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// frame reads one message; its text shows the type and the body.
func (w *wire) frame() (typ byte, text string, err error) {
	typ, n, err := w.in.header()
	if err != nil {
		return 0, "", err
	}
	b, err := w.in.frame(n)
	if err != nil {
		return 0, "", err
	}
	return typ, fmt.Sprintf("%c %q", typ, b[headerSize:]), nil
}

// read reads up to and including the nth message of a type, or the end.
func (w *wire) read(until byte, n int) []string {
	w.t.Helper()
	var frames []string
	for n > 0 {
		typ, text, err := w.frame()
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
			return append(frames, "end")
		case err != nil:
			w.t.Fatalf("after %d messages: %v", len(frames), err)
		}
		frames = append(frames, text)
		if typ == until {
			n--
		}
	}
	return frames
}

// wantFatal reads to the end, which must come after a FATAL with this code.
func (w *wire) wantFatal(code string) pgproto3.ErrorResponse {
	w.t.Helper()
	var got pgproto3.ErrorResponse
	for {
		typ, n, err := w.in.header()
		if err != nil {
			if got.Code != code || got.Severity != "FATAL" || !errors.Is(err, io.EOF) {
				w.t.Fatalf("connection ended with %q %s %q (%v), want FATAL %s", got.Severity, got.Code, got.Message, err, code)
			}
			return got
		}
		b, err := w.in.frame(n)
		if err != nil {
			w.t.Fatal(err)
		}
		if typ == 'E' {
			if err := got.Decode(b[headerSize:]); err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

// wantEnd reads to the end.
func (w *wire) wantEnd() {
	w.t.Helper()
	if _, err := io.Copy(io.Discard, w.conn); errors.Is(err, context.DeadlineExceeded) {
		w.t.Fatalf("connection is still open")
	}
}

// sql runs a simple query and returns its answer.
func (w *wire) sql(text string) []string {
	w.t.Helper()
	w.send(&pgproto3.Query{String: text})
	return w.read('Z', 1)
}
