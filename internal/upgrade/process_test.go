package upgrade

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
)

// patience bounds what the test waits for.
const patience = 90 * time.Second

// command makes a command, which is killed when ctx ends.
func (p program) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, p.path, args...)
	cmd.Env = []string{"HOME=" + os.Getenv("HOME"), "PATH=" + os.Getenv("PATH")}
	if p.url != "" {
		cmd.Env = append(cmd.Env, "PITH_DATABASE_URL="+p.url)
	}
	return cmd
}

// at is the program with another database.
func (p program) at(url string) program {
	p.url = url
	return p
}

// result is what came of a command.
type result struct {
	code     int
	out, err string
}

// run runs a command to its end. It may be called by any goroutine.
func (p program) run(t *testing.T, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out, errOut bytes.Buffer
	cmd := p.command(ctx, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Errorf("%s %s: %v", p.name, strings.Join(args, " "), err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errOut.String()}
}

// must is run for a command that is to succeed; it returns what that prints.
func (p program) must(t *testing.T, args ...string) string {
	t.Helper()
	r := p.run(t, args...)
	if r.code != 0 {
		t.Fatalf("%s %s: status %d: %s", p.name, strings.Join(args, " "), r.code, r.err)
	}
	return r.out
}

// refused checks that a command does not start on the schema that is there, and says why.
func (p program) refused(t *testing.T, text string, args ...string) {
	t.Helper()
	if r := p.run(t, args...); r.code != 1 || !strings.Contains(r.out+r.err, text) {
		t.Errorf("%s %s: status %d, want 1 and %q: %s%s", p.name, strings.Join(args, " "), r.code, text, r.out, r.err)
	}
}

// dispatch dispatches a task.
func (p program) dispatch(t *testing.T, args ...string) (id uuid.UUID, ok bool) {
	t.Helper()
	r := p.run(t, append([]string{"task", "dispatch"}, args...)...)
	var task struct{ ID uuid.UUID }
	if err := json.Unmarshal([]byte(r.out), &task); err != nil || r.code != 0 {
		t.Errorf("%s dispatch %s: status %d: %s", p.name, strings.Join(args, " "), r.code, r.err)
		return uuid.Nil, false
	}
	return task.ID, true
}

// A worker is a process that runs tasks.
type worker struct {
	program
	cmd *exec.Cmd
	log string // a file
}

// hire starts a worker.
func (s *scene) hire(p program) *worker {
	s.t.Helper()
	w := &worker{program: p, log: filepath.Join(s.dir, "worker-"+uuid.NewString())}
	log, err := os.Create(w.log)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	w.cmd = p.command(context.WithoutCancel(s.t.Context()), "worker", "--concurrency=4", "--ttl=10s", "--log-level=debug", "--name-template="+p.name+"-{pid}")
	w.cmd.Stderr = log
	if err := w.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if w.cmd.ProcessState == nil {
			_ = w.cmd.Process.Kill() // only where the test has failed
			_ = w.cmd.Wait()
		}
	})
	s.workers = append(s.workers, w)
	return w
}

// leave has a worker end when its tasks have ended.
func (w *worker) leave(t *testing.T) {
	t.Helper()
	if err := w.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := w.cmd.Wait(); err != nil {
		text, _ := os.ReadFile(w.log)
		t.Errorf("%s worker: %v\n%s", w.name, err, text)
	}
}

// An attempt is one run of a task.
type attempt struct {
	task   uuid.UUID
	number int
}

// started returns the attempts that a worker has begun.
func (w *worker) started(t *testing.T) (list []attempt) {
	t.Helper()
	text, err := os.ReadFile(w.log)
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		var entry struct {
			Msg     string
			Task    uuid.UUID
			Attempt int
		}
		if err := json.Unmarshal(lines.Bytes(), &entry); err == nil && entry.Msg == "task started" {
			list = append(list, attempt{entry.Task, entry.Attempt})
		}
	}
	return list
}

// migration runs a command that migrates, and calls blocked when it first says that something is in its way.
func (p program) migration(t *testing.T, blocked func(line string), args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := p.command(ctx, append([]string{"migrate"}, args...)...)
	var said bytes.Buffer
	errOut, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(errOut); lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), "trying again") || strings.Contains(lines.Text(), "waits for older transactions") {
			blocked(lines.Text())
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s migrate %s: %v\n%s", p.name, strings.Join(args, " "), err, &said)
	}
}
