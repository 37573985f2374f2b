package localpg

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"
)

// helperEnv makes the test binary a process that starts a server and a pooler,
// tells about them in one line, and waits for the end of its standard input.
const helperEnv = "PITH_LOCALPG_HELPER"

// A helperReport is what the helper tells about itself.
type helperReport struct {
	UID      int
	Postgres int
	Bouncer  int
	Dir      string
	URL      string
	Answer   string
}

func TestMain(m *testing.M) {
	if cfg := os.Getenv(helperEnv); cfg != "" {
		if err := helper(cfg); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func helper(text string) error {
	var cfg Config
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	ctx := context.Background()
	s, err := Start(ctx, cfg)
	if err != nil {
		return err
	}
	b, err := s.StartBouncer(ctx, BouncerConfig{PoolSize: 2})
	if err != nil {
		return err
	}
	report := helperReport{UID: os.Geteuid(), Postgres: s.PID(), Bouncer: b.PID(), Dir: s.home.dir, URL: s.URL("postgres")}
	if report.Answer, err = ask(ctx, b.URL("postgres"), "SELECT current_user::text"); err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(report); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	return s.Stop()
}

// A helperProcess is a running helper; closing stdin ends it properly.
type helperProcess struct {
	helperReport
	cmd   *exec.Cmd
	stdin io.Closer
}

// startHelper runs this test binary as a helper, as another user if cred says so.
func startHelper(t *testing.T, cfg Config, cred *syscall.Credential) *helperProcess {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if cred != nil {
		// The directory that go test builds in is closed to other users.
		copied := filepath.Join(openDir(t), "helper")
		// A process that is forked meanwhile would hold the copy open for writing, and a program that is
		// being written cannot be executed.
		syscall.ForkLock.RLock()
		err := copyFile(copied, self)
		syscall.ForkLock.RUnlock()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(copied, 0o755); err != nil {
			t.Fatal(err)
		}
		self = copied
	}
	text, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd := exec.Command(self)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), helperEnv+"="+string(text))
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h := &helperProcess{cmd: cmd, stdin: stdin}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err != nil {
		_ = cmd.Wait()
		t.Fatalf("helper: %v\n%s", err, stderr.String())
	}
	if err := json.Unmarshal(line, &h.helperReport); err != nil {
		t.Fatalf("helper: %v in %q", err, line)
	}
	return h
}

// openDir returns a temporary directory that every user can enter, unlike
// t.TempDir's.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "localpg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// ask runs a query for one text value.
func ask(ctx context.Context, url, query string) (answer string, err error) {
	conn, err := connect(ctx, url)
	if err != nil {
		return "", err
	}
	defer hangUp(ctx, conn)
	err = conn.QueryRow(ctx, query).Scan(&answer)
	return answer, err
}

func mustAsk(t *testing.T, url, query string) string {
	t.Helper()
	answer, err := ask(t.Context(), url, query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return answer
}

func mustExec(t *testing.T, url, statement string) {
	t.Helper()
	conn, err := connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer hangUp(t.Context(), conn)
	if _, err := conn.Exec(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// unsafe makes servers quick.
func unsafe() map[string]string {
	return map[string]string{"fsync": "off", "shared_buffers": "16MB"}
}

func start(t *testing.T, cfg Config) *Server {
	t.Helper()
	s, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func wantGone(t *testing.T, what string, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("%s still runs as process %d", what, pid)
	}
}

func wantNoFile(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s still exists (%v)", path, err)
	}
}

// poolMode reads SHOW POOLS.
func poolMode(t *testing.T, b *Bouncer, database string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), b.AdminURL())
	if err != nil {
		t.Fatal(err)
	}
	defer hangUp(t.Context(), conn)
	rows, err := conn.Query(t.Context(), "SHOW POOLS")
	if err != nil {
		t.Fatal(err)
	}
	pools, err := pgx.CollectRows(rows, pgx.RowToMap)
	if err != nil {
		t.Fatal(err)
	}
	for _, pool := range pools {
		if pool["database"] == database {
			return fmt.Sprint(pool["pool_mode"])
		}
	}
	return ""
}
