package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/pool"
	"github.com/pithworks/pith/tasking"
)

// asWorker makes this program a worker of the isolated types on the database that it names.
const asWorker = "PITH_TEST_WORKER_URL"

func TestMain(m *testing.M) {
	tasking.RunChild(isolatedRegistry())
	if url := os.Getenv(asWorker); url != "" {
		if err := workAlone(url); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	dbtest.Main(m)
}

// workAlone is a worker that is a process of its own.
func workAlone(url string) error {
	ctx := context.Background()
	p, err := pool.Open(ctx, url, pool.Config{})
	if err != nil {
		return err
	}
	defer p.Close()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	c, err := tasking.New(p, tasking.Config{Registry: isolatedRegistry(), Log: log})
	if err != nil {
		return err
	}
	go func() { // it ends with the test
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	w, err := New(c, Config{TTL: 2 * time.Second, Concurrency: 2, Auxiliary: true, NameTemplate: "alone", Log: log})
	if err != nil {
		return err
	}
	return w.Run(ctx)
}

// order is what an isolated task of the tests is to do.
type order struct {
	Do     string `json:"do"`
	Text   string `json:"text,omitempty"`
	Number int64  `json:"number,omitempty"`
}

// The isolated types of the tests.
var (
	isolated = tasking.NewType("test.isolated", obey, tasking.TypeConfig{Isolated: &tasking.Isolation{}})
	// hasty is stopped soon, and killed at once.
	hasty = tasking.NewType("test.hasty", obey, tasking.TypeConfig{
		Isolated: &tasking.Isolation{Time: time.Minute, StopGrace: time.Millisecond},
	})
	limited = tasking.NewType("test.limited", obey, tasking.TypeConfig{
		Isolated:    &tasking.Isolation{Memory: 100 << 20},
		MaxAttempts: 2, Backoff: time.Millisecond,
	})
	timed = tasking.NewType("test.timed", obey, tasking.TypeConfig{
		Isolated: &tasking.Isolation{Time: 100 * time.Millisecond, StopGrace: 100 * time.Millisecond},
	})
)

func isolatedRegistry() *tasking.Registry {
	r, err := tasking.NewRegistry(isolated, hasty, limited, timed, isolatedEcho, echo)
	if err != nil {
		panic(err) // the types are the tests' own
	}
	return r
}

var isolatedEcho = tasking.NewType("test.isolated_echo", func(_ context.Context, _ *tasking.Run, a echoArgs) (string, error) {
	return a.Text, nil
}, tasking.TypeConfig{Isolated: &tasking.Isolation{}})

var ballast [][]byte

func obey(ctx context.Context, run *tasking.Run, o order) (string, error) {
	switch o.Do {
	case "report":
		return "", report(ctx, run, o.Number)
	case "fail":
		return "", fmt.Errorf("wrapped: %w", errors.New(o.Text))
	case "panic":
		panic(o.Text)
	case "panic elsewhere":
		go func() { panic(o.Text) }()
		select {}
	case "exit":
		os.Exit(int(o.Number))
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.Signal(o.Number))
		select {}
	case "heed":
		if err := beckon(o.Text); err != nil {
			return "", err
		}
		<-ctx.Done()
		return "", context.Cause(ctx)
	case "hang":
		if err := beckon(o.Text); err != nil {
			return "", err
		}
		select {}
	case "allocate":
		for range o.Number {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			ballast = append(ballast, b)
		}
		runtime.KeepAlive(ballast)
		select {}
	case "client":
		return fmt.Sprint(run.Client() == nil), nil
	}
	return "", fmt.Errorf("unknown order %q", o.Do)
}

// beckon tells the test that the task runs, and in which process.
func beckon(file string) error {
	if file == "" {
		return nil
	}
	if err := os.WriteFile(file+".new", fmt.Appendf(nil, "%d", os.Getpid()), 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// report uses all that a Run offers.
func report(ctx context.Context, run *tasking.Run, n int64) error {
	p, err := run.Progress(ctx, "Counting", "test.count", n, "")
	if err != nil {
		return err
	}
	for range n {
		if err := p.Add(ctx, 1); err != nil {
			return err
		}
	}
	if _, err := run.Progress(ctx, "Unfinished", "test.unfinished", -1, "things"); err != nil {
		return err
	}
	if err := run.AddCreatedResource(ctx, "prn:file.filerepository:1"); err != nil {
		return err
	}
	token, err := run.Token(ctx)
	if err != nil || token <= 0 {
		return fmt.Errorf("token %d, %w", token, err)
	}
	if _, err := run.Dispatch(ctx, echo.Request(echoArgs{"one"}, tasking.Options{})); err != nil {
		return err
	}
	// Numbers keep all their digits on the way.
	big := tasking.Request{Name: "test.echo", Args: map[string]any{"text": "big", "number": int64(9007199254740993)}}
	if _, err := run.DispatchMany(ctx, []tasking.Request{big}); err != nil {
		return err
	}
	_, err = run.Dispatch(ctx, tasking.Request{Name: "test.nobody_knows"})
	if !errors.Is(err, tasking.ErrUnknownType) || !errors.Is(err, tasking.ErrInvalid) || !strings.Contains(err.Error(), "test.nobody_knows") {
		return fmt.Errorf("dispatch of an unknown type: %w", err)
	}
	g, err := run.GetGroup(ctx)
	if err != nil || g.Running != 1 || g.Description != "a family" {
		return fmt.Errorf("group %+v, %w", g, err)
	}
	run.Log.Info("said in the child", "number", n)
	fmt.Println("printed in the child")
	return run.CloseGroup(ctx)
}

// alone starts a worker that is a process of its own.
func alone(t *testing.T, url string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asWorker+"="+url, "TMPDIR="+t.TempDir())
	cmd.Stderr = &testLines{t: t}
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	return cmd
}

// testLines logs what a process says.
type testLines struct{ t *testing.T }

func (l *testLines) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// beacon is a file for beckon, and a function that waits for it and answers the process.
func beacon(t *testing.T) (file string, pid func() int) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "runs")
	return file, func() (pid int) {
		t.Helper()
		dbtest.Until(t, "the task runs", func(context.Context) (bool, error) {
			raw, err := os.ReadFile(file)
			if errors.Is(err, os.ErrNotExist) {
				return false, nil
			}
			if err == nil {
				_, err = fmt.Sscan(string(raw), &pid)
			}
			return true, err
		})
		return pid
	}
}
