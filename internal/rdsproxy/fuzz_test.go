package rdsproxy

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// chunks returns at most n bytes at a time.
type chunks struct {
	b []byte
	n int
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.n)], c.b)
	c.b = c.b[n:]
	return n, nil
}

// FuzzFrames cuts a stream into messages, whole and in pieces, however it arrives,
// and allocates no more than what arrives asks for.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("Q\x00\x00\x00\x05\x00S\x00\x00\x00\x04"), 3, true)
	f.Add([]byte("Q\x00\x00\x00\x03"), 1, false)
	f.Add([]byte("d\x7f\xff\xff\xffabc"), 100, true)
	f.Add(append([]byte("d\x00\x00\x10\x04"), make([]byte, 4096)...), 7, false)
	f.Fuzz(func(t *testing.T, b []byte, n int, whole bool) {
		const limit, start = 1 << 16, 16
		r := &frameReader{r: &chunks{b: b, n: max(n%100, 1)}, start: start, keep: 64, limit: limit}
		rest := b
		for {
			typ, size, err := r.header()
			if err == nil {
				var got []byte
				if whole {
					got, err = r.frame(size)
				} else {
					err = r.stream(size, func(piece []byte, _ bool) { got = append(got, piece...) })
				}
				if err == nil {
					want := rest[:headerSize+size]
					if typ != want[0] || !bytes.Equal(got, want) || int(binary.BigEndian.Uint32(want[1:])) != size+4 {
						t.Fatalf("got %q, want %q", got, want)
					}
					rest = rest[len(want):]
				}
			}
			if len(r.buf) > 2*len(b)+2*start {
				t.Fatalf("buffer of %d bytes for %d bytes of input", len(r.buf), len(b))
			}
			var large *tooLargeError
			switch {
			case err == nil:
				continue
			case errors.Is(err, io.EOF):
				if len(rest) != 0 {
					t.Fatalf("%d bytes are left", len(rest))
				}
			case errors.Is(err, io.ErrUnexpectedEOF):
				if len(rest) == 0 {
					t.Fatal("nothing was left")
				}
			case errors.Is(err, errLength):
				if n := int32(binary.BigEndian.Uint32(rest[1:])); n >= 4 {
					t.Fatalf("length %d was refused", n)
				}
			case errors.As(err, &large):
				if n := int32(binary.BigEndian.Uint32(rest[1:])); n < limit {
					t.Fatalf("length %d was refused", n)
				}
			default:
				t.Fatal(err)
			}
			return
		}
	})
}

func TestBoundedReaderReadsNothingAhead(t *testing.T) {
	t.Parallel()
	stream := encode(t, &pgproto3.Query{String: "SELECT 1"}, &pgproto3.Sync{}, &pgproto3.Query{String: "SELECT 2"})
	first := encode(t, &pgproto3.Query{String: "SELECT 1"})
	for _, size := range []int{1, 3, 5, 7, 1000} {
		source := bytes.NewReader(stream)
		r := &boundedReader{r: source}
		var got []byte
		for len(got) < len(first) {
			p := make([]byte, size)
			n, err := r.Read(p)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, p[:n]...)
		}
		if !bytes.Equal(got, first) {
			t.Errorf("by %d: got %q", size, got)
		}
		if left := source.Len(); left != len(stream)-len(first) {
			t.Errorf("by %d: %d bytes are left, want %d", size, left, len(stream)-len(first))
		}
	}
}

// scripted answers messages as a server would that finds every statement right,
// except those whose text begins with E. It returns an error if it gets anything
// that is no message.
func scripted(conn net.Conn) error {
	in := &frameReader{r: conn, start: 64, keep: 64}
	skipping, copying := false, false
	send := func(messages ...pgproto3.BackendMessage) bool {
		var b []byte
		for _, m := range messages {
			var err error
			if b, err = m.Encode(b); err != nil {
				return false
			}
		}
		_, err := conn.Write(b)
		return err == nil
	}
	ready := &pgproto3.ReadyForQuery{TxStatus: 'I'}
	refuse := &pgproto3.ErrorResponse{Severity: "ERROR", Code: "XX000"}
	complete := &pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")}
	for {
		typ, n, err := in.header()
		var frame []byte
		if err == nil {
			frame, err = in.frame(n)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) {
			return nil
		}
		if err != nil {
			return err
		}
		first, rest, _ := cstring(frame[headerSize:])
		open := true
		switch {
		case bytes.IndexByte([]byte("QPBDECFSHdcfX"), typ) < 0:
			return fmt.Errorf("message of type %q", typ)
		case typ == 'X':
			return nil
		case skipping && typ != 'S', typ == 'S' && copying:
		case typ == 'S':
			skipping = false
			open = send(ready)
		case typ == 'Q' && strings.HasPrefix(first, "C"):
			copying = true
			open = send(&pgproto3.CopyInResponse{})
		case typ == 'Q' && strings.HasPrefix(first, "E"):
			open = send(refuse, ready)
		case typ == 'Q':
			open = send(complete, ready)
		case copying && typ == 'c':
			copying = false
			open = send(complete, ready)
		case copying && typ == 'f':
			copying = false
			open = send(refuse, ready)
		case typ == 'P' && bytes.HasPrefix(rest, []byte("E")):
			skipping = true
			open = send(refuse)
		case typ == 'P':
			open = send(&pgproto3.ParseComplete{})
		case typ == 'B':
			open = send(&pgproto3.BindComplete{})
		case typ == 'D':
			open = send(&pgproto3.NoData{})
		case typ == 'C':
			open = send(&pgproto3.CloseComplete{})
		case typ == 'E':
			open = send(complete)
		case typ == 'F':
			open = send(&pgproto3.FunctionCallResponse{}, ready)
		}
		if !open {
			return nil
		}
	}
}

// A fedConn is a client that has sent all its bytes, and reads.
type fedConn struct {
	net.Conn
	chunks
}

func (c *fedConn) Read(p []byte) (int, error) { return c.chunks.Read(p) }

// FuzzSession sends a client's bytes, whatever they are, past a session to a scripted
// server. The session ends, the server gets messages only, and so does the client.
func FuzzSession(f *testing.F) {
	seed := func(m ...pgproto3.FrontendMessage) { f.Add(encode(f, m...)) }
	seed(&pgproto3.Query{String: "SELECT 1"}, &pgproto3.Terminate{})
	seed(append(run("SELECT 1"), syncMsg, describe('S', ""), shut('S', ""), syncMsg)...)
	seed(prep("a", "SELECT 1"), prep("a", "ERROR"), bind("a"), &pgproto3.Query{String: "x"}, syncMsg, flushMsg)
	seed(&pgproto3.Query{String: "COPY x FROM STDIN"}, syncMsg, data("x"), done, &pgproto3.Query{String: "SET x = 1"})
	seed(&pgproto3.Query{String: "COPY x FROM STDIN"}, data("x"), syncMsg, fail, syncMsg)
	seed(&pgproto3.FunctionCall{}, &pgproto3.PasswordMessage{})
	f.Add([]byte("Q\x00\x00\x00\x09SEL"))
	f.Add([]byte("B\x00\x00\x00\x06\x00\x00D\x00\x00\x00\x04"))
	f.Add(bytes.Repeat([]byte{0}, 100))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := New(Config{Upstream: "postgres://127.0.0.1:1/", Users: map[string]string{"pith": "pith"}, PoolSize: 1, MaxMessage: 1 << 16, BorrowTimeout: time.Second, MessageTimeout: 10 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		p.ctx = ctx

		toServer, atServer := net.Pipe()
		scriptEnded := make(chan error, 1)
		go func() {
			err := scripted(atServer)
			_ = atServer.Close()
			scriptEnded <- err
		}()
		pl := p.enter(poolKey{"pith", "pith"})
		sc := newServerConn(pl, toServer, toServer)
		pl.dialing++
		pl.add(ctx, sc)

		pipe, atClient := net.Pipe()
		toClient := &fedConn{Conn: pipe, chunks: chunks{b: b, n: 64}}
		s := &session{p: p, conn: toClient, view: map[string]*stmt{}, pool: pl, user: "pith", database: "pith"}
		s.in = &frameReader{r: toClient, start: clientBuffer, keep: clientKeep, limit: p.cfg.MaxMessage}
		sessionEnded := make(chan struct{})
		go func() {
			s.end(s.run(ctx))
			_ = toClient.Close()
			close(sessionEnded)
		}()
		answers := &frameReader{r: atClient, start: 64, keep: 64}
		for {
			typ, n, err := answers.header()
			if errors.Is(err, io.EOF) {
				break
			}
			var frame []byte
			if err == nil {
				frame, err = answers.frame(n)
			}
			if err != nil {
				t.Fatalf("client: %v", err)
			}
			if typ == 'E' && bytes.Contains(frame, []byte("FATAL")) {
				break // a pipe cannot be closed on one side
			}
		}
		_ = atClient.Close()
		<-sessionEnded
		cancel()
		p.closeAll()
		_ = atServer.Close()
		if err := <-scriptEnded; err != nil {
			t.Errorf("server: %v", err)
		}
		p.wg.Wait()
	})
}
