package rdsproxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
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
	var in io.Reader
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		in = r // not the connection: after a slow write pgconn reads from it ahead
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
	w := &wire{t: t, conn: h.Conn, in: &frameReader{r: in, start: 4096, keep: 4096}}
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

// patience gives what is read next the time that a test waits for anything.
func (w *wire) patience() {
	w.t.Helper()
	if err := w.conn.SetReadDeadline(time.Now().Add(testTimeout)); err != nil {
		w.t.Fatal(err)
	}
}

// read reads up to and including the nth message of a type, or to the end, which it
// shows as a message of its own.
func (w *wire) read(until byte, n int) []string {
	w.t.Helper()
	w.patience()
	var frames []string
	for n > 0 {
		typ, text, err := w.frame()
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
			return append(frames, ended)
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

// ended stands for the end of a connection among its messages.
const ended = "end"

// answer reads up to and including the nth message of a type, which must come.
func (w *wire) answer(until byte, n int) []string {
	w.t.Helper()
	frames := w.read(until, n)
	if last := len(frames) - 1; frames[last] == ended {
		w.t.Fatalf("connection ended before the %c message: %.1000q", until, frames[max(0, last-5):])
	}
	return frames
}

// wantFatal reads to the end, which must come after a FATAL with this code.
func (w *wire) wantFatal(code string) pgproto3.ErrorResponse {
	w.t.Helper()
	w.patience()
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
	w.patience()
	if _, err := io.Copy(io.Discard, w.in.r); errors.Is(err, os.ErrDeadlineExceeded) {
		w.t.Fatalf("connection is still open")
	}
}

// wantSilence reads for a while, in which neither a byte nor the end may come.
func (w *wire) wantSilence(d time.Duration) {
	w.t.Helper()
	if err := w.conn.SetReadDeadline(time.Now().Add(d)); err != nil {
		w.t.Fatal(err)
	}
	var b [1]byte
	if n, err := w.in.r.Read(b[:]); !errors.Is(err, os.ErrDeadlineExceeded) {
		w.t.Fatalf("got %q (%v), want nothing", b[:n], err)
	}
}

// sql runs a simple query and returns its answer, up to ReadyForQuery.
func (w *wire) sql(text string) []string {
	w.t.Helper()
	w.send(&pgproto3.Query{String: text})
	return w.answer('Z', 1)
}

// wantOne runs a query of one row, which must succeed outside of a transaction.
func (w *wire) wantOne(text string) {
	w.t.Helper()
	got := w.sql(text)
	if len(got) != 4 || got[0][0] != 'T' || got[1][0] != 'D' || got[2][0] != 'C' || got[3] != `Z "I"` {
		w.t.Fatalf("%s: got %q, want one row", text, got)
	}
}
