package api

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/internal/dbtest"
)

// pipes is a listener whose connections are pipes in memory.
type pipes struct {
	conns chan net.Conn
	close func()
}

func newPipes() pipes {
	conns := make(chan net.Conn)
	return pipes{conns, sync.OnceFunc(func() { close(conns) })}
}

func (p pipes) Accept() (net.Conn, error) {
	conn, ok := <-p.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}

func (p pipes) Close() error {
	p.close()
	return nil
}

func (p pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes", Net: "unix"} }

// watched is a server's end of a connection, which tells that it was closed.
type watched struct {
	net.Conn
	closed func()
}

func (w watched) Close() error {
	w.closed()
	return w.Conn.Close()
}

func TestSlowClientsAreCutOff(t *testing.T) {
	t.Parallel()
	s := Aloof(t, Config{})
	for _, tt := range []struct {
		name  string
		sent  string
		slow  bool // goes on sending, a byte a second
		reads bool // takes the reply
		after time.Duration
	}{
		{"nothing is sent", "", false, true, 10 * time.Second},
		{"headers", "GET / HTTP/1.1\r\nHost: pulp\r\nX-Slow: ", true, true, 10 * time.Second},
		{"a body", "POST / HTTP/1.1\r\nHost: pulp\r\nContent-Length: 1000\r\n\r\n", true, true, 60 * time.Second},
		{"a reply", "GET / HTTP/1.1\r\nHost: pulp\r\n\r\n", false, false, 120 * time.Second},
		{"the next request", "GET / HTTP/1.1\r\nHost: pulp\r\n\r\n", false, true, 120 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				srv, listener := s.httpServer(), newPipes()
				srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.Copy(io.Discard, r.Body)
					_, _ = io.WriteString(w, strings.Repeat("x", 1<<20))
				})
				served := make(chan error, 1)
				go func() { served <- srv.Serve(listener) }()
				client, server := net.Pipe()
				closed := make(chan time.Duration, 1)
				began := time.Now()
				listener.conns <- watched{server, sync.OnceFunc(func() { closed <- time.Since(began) })}
				if _, err := io.WriteString(client, tt.sent); err != nil {
					t.Fatal(err)
				}
				var parts sync.WaitGroup
				if tt.slow {
					parts.Go(func() {
						for err := error(nil); err == nil; _, err = io.WriteString(client, "x") {
							<-time.After(time.Second)
						}
					})
				}
				if tt.reads {
					parts.Go(func() { _, _ = io.Copy(io.Discard, client) })
				}
				if took := (<-closed).Truncate(time.Second); took != tt.after {
					t.Errorf("cut off after %s, want %s", took, tt.after)
				}
				_ = client.Close()
				parts.Wait()
				if err := srv.Close(); err != nil {
					t.Error(err)
				}
				if err := <-served; !errors.Is(err, http.ErrServerClosed) {
					t.Error(err)
				}
			})
		})
	}
}

// TestStatusReadsTheProcessesOncePerSecond: anyone may ask for it.
func TestStatusReadsTheProcessesOncePerSecond(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	s := newServer(t, d)
	now := time.Now()
	s.status.now = func() time.Time { return now }
	register := func(name string) {
		t.Helper()
		app, err := appstatus.New(d.Pool, appstatus.Config{Type: appstatus.Worker, NameTemplate: name, TTL: time.Hour, Versions: map[string]string{"core": "1"}})
		if err == nil {
			err = app.Register(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for i, step := range []struct {
		later time.Duration
		want  int
	}{{0, 1}, {0, 1}, {time.Second - 1, 1}, {1, 4}, {time.Second - 1, 4}, {time.Minute, 6}} {
		register(fmt.Sprint(i))
		now = now.Add(step.later)
		apps, err := s.online(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n := len(apps[appstatus.Worker]); n != step.want {
			t.Errorf("step %d tells of %d of %d workers, want %d", i, n, i+1, step.want)
		}
	}
}
