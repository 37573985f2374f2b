package dbtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"

	"github.com/pithworks/pith/internal/localpg"
)

// A Pooler stands between the code under test and a PostgreSQL server.
type Pooler interface {
	// URL returns the address of a database through the pooler.
	URL(database string) string

	// AdminURL returns the address of PgBouncer's console, or nothing if the pooler
	// has none.
	AdminURL() string

	// Kill ends the pooler as a crash would. Restart brings it back.
	Kill()

	// Restart ends the pooler, if it runs, and starts it on the same port.
	Restart(ctx context.Context) error

	// Stop ends the pooler for good, cutting off its clients.
	Stop()
}

// What PITH_TEST_POOLER may be.
const (
	viaPgBouncer = "pgbouncer" // in transaction mode
	viaStatement = "statement" // PgBouncer in statement mode
	viaRDSProxy  = "rdsproxy"  // the stand-in for Amazon RDS Proxy; a pin fails its test
	viaContainer = "container" // the image of deploy/pgbouncer
	viaNothing   = "direct"
)

// way returns what the tests run through.
func way() (string, error) {
	switch v := os.Getenv("PITH_TEST_POOLER"); v {
	case "":
		return viaPgBouncer, nil
	case viaPgBouncer, viaStatement, viaRDSProxy, viaContainer, viaNothing:
		return v, nil
	default:
		return "", fmt.Errorf("PITH_TEST_POOLER=%s: use %s, %s, %s, %s or %s",
			v, viaPgBouncer, viaStatement, viaRDSProxy, viaContainer, viaNothing)
	}
}

// Pooled tells whether URL and Pool of a database go through a pooler.
func Pooled() bool {
	v, err := way()
	return err == nil && v != viaNothing
}

// Transactions tells whether URL and Pool of a database allow a transaction of
// several flights. PgBouncer in statement mode does not.
func Transactions() bool {
	v, err := way()
	return err == nil && v != viaStatement
}

// startPooler runs the pooler that is wanted; nil if none is.
func startPooler(ctx context.Context, server *localpg.Server) (Pooler, error) {
	via, err := way()
	if err != nil {
		return nil, err
	}
	size, err := poolSize()
	if err != nil {
		return nil, err
	}
	switch via {
	case viaPgBouncer:
		return server.StartBouncer(ctx, localpg.BouncerConfig{PoolSize: size})
	case viaStatement:
		return server.StartBouncer(ctx, localpg.BouncerConfig{PoolSize: size, PoolMode: "statement"})
	case viaRDSProxy:
		return startProxy(ctx, server, size)
	case viaContainer:
		return startContainer(ctx, server, size)
	}
	return nil, nil
}

// container is a pooler in a container. A program of its own runs it, so that a
// container engine's client is no dependency of ours. The program speaks in
// lines, and ends the container when this process is gone.
type container struct {
	port int
	cmd  *exec.Cmd

	mu      sync.Mutex // guards what follows, held for a command and its answer
	in      io.WriteCloser
	out     *bufio.Scanner
	stopped bool
}

func startContainer(ctx context.Context, server *localpg.Server, size int) (_ *container, err error) {
	program := os.Getenv("PITH_TEST_POOLER_PROGRAM")
	if program == "" {
		return nil, errors.New("PITH_TEST_POOLER_PROGRAM is not set: use make test-container")
	}
	c := &container{cmd: exec.Command(program, "--upstream-port", strconv.Itoa(server.Port()), "--pool-size", strconv.Itoa(size))}
	c.cmd.Stderr = os.Stderr
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start pooler's container: %w", err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start pooler's container: %w", err)
	}
	c.out = bufio.NewScanner(out)
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start pooler's container: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.in.Close() })
	defer stop()
	port, err := c.answer("ready")
	if err == nil {
		c.port, err = strconv.Atoi(port)
	}
	if err != nil {
		_ = c.in.Close()
		return nil, errors.Join(fmt.Errorf("start pooler's container: %w", err), c.cmd.Wait())
	}
	return c, nil
}

// answer reads a line that must begin with a word, and returns the rest.
func (c *container) answer(word string) (string, error) {
	if !c.out.Scan() {
		return "", errors.Join(io.ErrUnexpectedEOF, c.out.Err())
	}
	rest, ok := strings.CutPrefix(c.out.Text(), word)
	if !ok {
		return "", fmt.Errorf("pooler's program said %q, not %s", c.out.Text(), word)
	}
	return strings.TrimSpace(rest), nil
}

func (c *container) command(name, word string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := fmt.Fprintln(c.in, name); err != nil {
		return fmt.Errorf("pooler's container: %s: %w", name, err)
	}
	if _, err := c.answer(word); err != nil {
		return fmt.Errorf("pooler's container: %s: %w", name, err)
	}
	return nil
}

func (c *container) URL(database string) string {
	return fmt.Sprintf("postgres://pith@127.0.0.1:%d/%s?sslmode=disable", c.port, database)
}

func (c *container) AdminURL() string {
	return c.URL("pgbouncer") + "&default_query_exec_mode=simple_protocol"
}

func (c *container) Kill() {
	if err := c.command("kill", "killed"); err != nil {
		panic(err) // the test would go on with a pooler that lives
	}
}

func (c *container) Restart(context.Context) error { return c.command("restart", "ready") }

func (c *container) Stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return
	}
	c.stopped = true
	_ = c.in.Close()
	if err := c.cmd.Wait(); err != nil {
		fmt.Fprintln(os.Stderr, "dbtest: pooler's container:", err)
	}
}
