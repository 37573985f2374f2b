package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
)

// patience bounds what a test waits for.
const patience = 2 * time.Minute

// buildImage makes the image once.
var buildImage = sync.OnceValue(func() error {
	quiet()
	return build(context.Background(), testConfig(), os.Stderr)
})

func testConfig() config {
	return config{
		image: "pith-pgbouncer:test", context: "../../deploy/pgbouncer", debian: "trixie",
		upstreamPort: 1, poolSize: 7, poolMode: "transaction",
	}
}

// needEngine skips a test where there is no engine, unless the suite was to run against the
// container.
func needEngine(t *testing.T) (*testcontainers.DockerProvider, context.Context) {
	t.Helper()
	quiet()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	provider, err := engine()
	if err == nil {
		err = provider.Health(ctx)
	}
	if err != nil {
		if os.Getenv("PITH_TEST_POOLER") == "container" {
			t.Fatalf("no container engine: %v", err)
		}
		t.Skipf("no container engine: %v: skipped", err)
	}
	if err := buildImage(); err != nil {
		t.Fatal(err)
	}
	return provider, ctx
}

// A program is run, as main runs it.
type program struct {
	t      *testing.T
	in     *io.PipeWriter
	lines  chan string // what it answers; closed when it ends
	code   chan int
	cancel context.CancelFunc
	errOut bytes.Buffer
}

func start(t *testing.T, args ...string) *program {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	in, stdin := io.Pipe()
	stdout, out := io.Pipe()
	p := &program{t: t, in: stdin, lines: make(chan string), code: make(chan int, 1), cancel: cancel}
	go func() {
		code := run(ctx, args, in, out, &p.errOut)
		_ = out.Close()
		p.code <- code
	}()
	go func() {
		defer close(p.lines)
		for s := bufio.NewScanner(stdout); s.Scan(); {
			p.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		cancel()
		for range p.lines { // until it has ended
		}
	})
	return p
}

func (p *program) tell(command string) {
	p.t.Helper()
	if _, err := io.WriteString(p.in, command+"\n"); err != nil {
		p.t.Fatal(err)
	}
}

func (p *program) hear(ctx context.Context) string {
	p.t.Helper()
	select {
	case line, ok := <-p.lines:
		if !ok {
			p.t.Fatalf("it ended: %s", p.errOut.String())
		}
		return line
	case <-ctx.Done():
		p.t.Fatal("no answer")
	}
	return ""
}

func (p *program) ready(ctx context.Context) int {
	p.t.Helper()
	line := p.hear(ctx)
	text, ok := strings.CutPrefix(line, "ready ")
	port, err := strconv.Atoi(text)
	if !ok || err != nil {
		p.t.Fatalf("answer %q, want ready PORT", line)
	}
	return port
}

func (p *program) end(ctx context.Context) int {
	p.t.Helper()
	select {
	case code := <-p.code:
		return code
	case <-ctx.Done():
		p.t.Fatal("it does not end")
	}
	return 0
}

func removeAtEnd(t *testing.T, p *pooler) {
	t.Cleanup(func() {
		if err := p.remove(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// login connects as pith.
func login(ctx context.Context, port int, password, database string) (*pgx.Conn, error) {
	return pgx.Connect(ctx, fmt.Sprintf(
		"postgres://pith:%s@127.0.0.1:%d/%s?sslmode=disable&default_query_exec_mode=simple_protocol", password, port, database))
}

// show asks PgBouncer's console and returns the first two columns.
func show(t *testing.T, ctx context.Context, port int, what string) map[string]string {
	t.Helper()
	conn, err := login(ctx, port, "", "pgbouncer")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, what)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	answer := map[string]string{}
	for rows.Next() {
		raw := rows.RawValues()
		answer[string(raw[0])] = string(raw[1])
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return answer
}

// containers counts those with a port, running or not.
func containers(t *testing.T, ctx context.Context, provider *testcontainers.DockerProvider, port int) int {
	t.Helper()
	list, err := provider.Client().ContainerList(ctx, client.ContainerListOptions{
		All: true, Filters: client.Filters{}.Add("label", fmt.Sprintf("%s.port=%d", label, port)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return len(list.Items)
}

func TestCommandsAreObeyed(t *testing.T) {
	t.Parallel()
	provider, ctx := needEngine(t)
	p := start(t, "--upstream-port", "1", "--pool-size", "7")
	port := p.ready(ctx)
	if pools := show(t, ctx, port, "SHOW POOLS"); pools["pgbouncer"] != "pgbouncer" {
		t.Errorf("SHOW POOLS = %v", pools)
	}
	for range 2 { // the second one finds nothing to kill
		p.tell("kill")
		if got := p.hear(ctx); got != "killed" {
			t.Fatalf("answer to kill: %q", got)
		}
		if conn, err := login(ctx, port, "", "pgbouncer"); err == nil {
			_ = conn.Close(ctx)
			t.Fatal("it answers though it was killed")
		}
	}
	for _, state := range []string{"killed", "running"} {
		p.tell("restart")
		if got := p.ready(ctx); got != port {
			t.Fatalf("restarted on port %d, want %d", got, port)
		}
		if size := show(t, ctx, port, "SHOW CONFIG")["default_pool_size"]; size != "7" {
			t.Errorf("after a restart when %s: default_pool_size = %q", state, size)
		}
	}
	if n := containers(t, ctx, provider, port); n != 1 {
		t.Errorf("%d containers, want 1", n)
	}
	p.tell("stop")
	if got := p.hear(ctx); got != "stopped" {
		t.Fatalf("answer to stop: %q", got)
	}
	if code := p.end(ctx); code != exitOK {
		t.Errorf("exit status %d: %s", code, p.errOut.String())
	}
	if n := containers(t, ctx, provider, port); n != 0 {
		t.Errorf("%d containers are left", n)
	}
}

func TestContainerEndsWithTheParent(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*program){
		"end of input": func(p *program) { _ = p.in.Close() },
		"interrupt":    func(p *program) { p.cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			provider, ctx := needEngine(t)
			p := start(t, "--upstream-port", "1")
			port := p.ready(ctx)
			end(p)
			if code := p.end(ctx); code != exitOK {
				t.Errorf("exit status %d: %s", code, p.errOut.String())
			}
			if n := containers(t, ctx, provider, port); n != 0 {
				t.Errorf("%d containers are left", n)
			}
		})
	}
}

func TestClientReachesEachDatabaseOfTheUpstream(t *testing.T) {
	t.Parallel()
	_, ctx := needEngine(t)
	upstream, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer upstream.Close()
	p := start(t, "--upstream-port", strconv.Itoa(upstream.Addr().(*net.TCPAddr).Port))
	port := p.ready(ctx)
	context.AfterFunc(ctx, func() { _ = upstream.Close() })
	// PgBouncer asks the server for a connection before it lets the client in, who waits in vain.
	client := make(chan struct{})
	clientCtx, hangUp := context.WithCancel(ctx)
	go func() {
		defer close(client)
		if conn, err := login(clientCtx, port, "", "some%20database"); err == nil {
			_ = conn.Close(ctx)
			t.Error("logged in without a server")
		} else if clientCtx.Err() == nil {
			t.Errorf("client: %v", err)
		}
	}()
	defer func() {
		hangUp()
		<-client
	}()
	conn, err := upstream.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	startup, err := readStartup(conn)
	if err == nil && startup == nil { // it asked for TLS
		if _, err = conn.Write([]byte("N")); err == nil {
			startup, err = readStartup(conn)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if startup["user"] != "pith" || startup["database"] != "some database" {
		t.Errorf("startup message %v", startup)
	}
}

// readStartup returns the parameters of a startup message, nil for an SSLRequest.
func readStartup(conn net.Conn) (map[string]string, error) {
	const sslRequest = 80877103
	head := make([]byte, 8)
	if _, err := io.ReadFull(conn, head); err != nil {
		return nil, err
	}
	if binary.BigEndian.Uint32(head[4:]) == sslRequest {
		return nil, nil
	}
	body := make([]byte, binary.BigEndian.Uint32(head)-8)
	if _, err := io.ReadFull(conn, body); err != nil {
		return nil, err
	}
	parameters := map[string]string{}
	words := strings.Split(string(body), "\x00")
	for i := 0; i+1 < len(words) && words[i] != ""; i += 2 {
		parameters[words[i]] = words[i+1]
	}
	return parameters, nil
}

func TestImageIsConfiguredAsDocumented(t *testing.T) {
	t.Parallel()
	_, ctx := needEngine(t)
	p, err := launch(ctx, testConfig())
	if err != nil {
		t.Fatal(err)
	}
	removeAtEnd(t, p)
	want := map[string]string{
		"pool_mode":                 "transaction",
		"default_pool_size":         "7",
		"max_client_conn":           "10000",
		"max_prepared_statements":   "0",
		"ignore_startup_parameters": "",
		"server_login_retry":        "1",
		"query_wait_timeout":        "60",
		"client_idle_timeout":       "0",
		"listen_addr":               "127.0.0.1",
		"listen_backlog":            "4096",
		"tcp_user_timeout":          "60000",
		"server_tls_sslmode":        "prefer",
	}
	got := map[string]string{}
	all := show(t, ctx, p.port, "SHOW CONFIG")
	for key := range want {
		got[key] = all[key]
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
	if status, _, err := p.container.Exec(ctx, []string{"healthcheck"}); err != nil || status != 0 {
		t.Errorf("health check: status %d, %v", status, err)
	}
	if status, _, err := p.container.Exec(ctx, []string{"env", "PGBOUNCER_LISTEN_PORT=1", "healthcheck"}); err != nil || status == 0 {
		t.Errorf("health check of a port where nobody listens: status %d, %v", status, err)
	}
	// The signal of the image ends it though a client stays; one that waits for it would not.
	idle, err := login(ctx, p.port, "", "pgbouncer")
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close(ctx)
	grace := patience
	if err := p.container.Stop(ctx, &grace); err != nil {
		t.Fatal(err)
	}
	state, err := p.container.State(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if state.ExitCode != 0 {
		t.Errorf("stopped with status %d", state.ExitCode)
	}
}

func TestPasswordIsAskedForAndNeverShown(t *testing.T) {
	t.Parallel()
	provider, ctx := needEngine(t)
	const password = `it's "quoted"\ here`
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	c, err := provider.RunContainer(ctx, testcontainers.ContainerRequest{
		Image:              testConfig().image,
		HostConfigModifier: hostNetwork,
		Files: []testcontainers.ContainerFile{
			{Reader: strings.NewReader(password + "\n"), ContainerFilePath: "/run/secrets/password", FileMode: 0o444},
		},
		Env: map[string]string{
			"PGBOUNCER_UPSTREAM_HOST": "127.0.0.1",
			"PGBOUNCER_LISTEN_ADDR":   "127.0.0.1",
			"PGBOUNCER_LISTEN_PORT":   strconv.Itoa(port),
			"PGBOUNCER_USER":          "pith",
			"PGBOUNCER_PASSWORD_FILE": "/run/secrets/password",
			"PGBOUNCER_ADMIN_USERS":   "pith",
		},
		WaitingFor: wait.ForLog(up),
	})
	if c != nil {
		removeAtEnd(t, &pooler{container: c})
	}
	if err != nil {
		t.Fatal(err)
	}
	escaped := (&strings.Builder{})
	for _, b := range []byte(password) {
		fmt.Fprintf(escaped, "%%%02x", b)
	}
	conn, err := login(ctx, port, escaped.String(), "pgbouncer")
	if err != nil {
		t.Errorf("with the password: %v", err)
	} else {
		_ = conn.Close(ctx)
	}
	if conn, err := login(ctx, port, "wrong", "pgbouncer"); err == nil {
		_ = conn.Close(ctx)
		t.Error("logged in with a wrong password")
	}
	logs, err := c.Logs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	text, err := io.ReadAll(logs)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(text, []byte("quoted")) {
		t.Errorf("the password is in the log:\n%s", text)
	}
	inspected, err := c.Inspect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(fmt.Sprintf("%+v", inspected.Config), "quoted") {
		t.Error("the password is in the container's configuration")
	}
}

func TestFailureIsOneLine(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"bad setting": {args: []string{"--upstream-port", "1", "--pool-mode", "none"}, want: "PGBOUNCER_POOL_MODE must be one of"},
		"no image":    {args: []string{"--upstream-port", "1", "--image", "pith-nothing:test"}, want: "find image pith-nothing:test"},
		"no context":  {args: []string{"--build", "--context", "testdata/nothing"}, want: "build"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, ctx := needEngine(t)
			p := start(t, tt.args...)
			if code := p.end(ctx); code != exitFailure {
				t.Errorf("exit status %d, want %d", code, exitFailure)
			}
			if got := p.errOut.String(); !strings.Contains(got, tt.want) || strings.Count(got, "\n") != 1 {
				t.Errorf("printed %q, want one line with %q", got, tt.want)
			}
		})
	}
}

func TestWrongCommandLineIsRefused(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"no upstream":    nil,
		"no port":        {"--upstream-port", "65536"},
		"no number":      {"--upstream-port", "x"},
		"unknown flag":   {"--upstream-port", "1", "--nothing"},
		"argument":       {"--upstream-port", "1", "x"},
		"image, no tag":  {"--upstream-port", "1", "--image", "x"},
		"build, no name": {"--build", "--image", "x"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out, errOut bytes.Buffer
			if code := run(t.Context(), args, strings.NewReader(""), &out, &errOut); code != exitUsage {
				t.Errorf("exit status %d, want %d", code, exitUsage)
			}
			if got := errOut.String(); strings.Count(got, "\n") != 1 || out.Len() > 0 {
				t.Errorf("printed %q and %q, want one line of error", out.String(), got)
			}
		})
	}
}
