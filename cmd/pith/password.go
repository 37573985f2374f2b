package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/pithworks/pith/pool"
)

// passwordTimeout is how long a password command may take. It ends before the wait for the database
// does, so that the command is named as the one that hangs.
const passwordTimeout = reachTimeout * 8 / 10

// maxPassword is how many bytes are read of a password command's output, and kept of its complaints.
const maxPassword = 64 << 10

// passwordError is a failure of the password command. It never holds what the command printed on its
// standard output.
type passwordError struct{ reason string }

func (e *passwordError) Error() string { return "password command: " + e.reason }

// tail keeps the last bytes that are written to it, and how many there were.
type tail struct {
	kept []byte
	all  int
}

func (t *tail) Write(p []byte) (int, error) {
	t.all += len(p)
	t.kept = append(t.kept, p...)
	t.kept = t.kept[max(0, len(t.kept)-maxPassword):]
	return len(p), nil
}

// lastLine is the last line with something on it, fit for a terminal.
func (t *tail) lastLine() string {
	last := ""
	for line := range strings.Lines(string(t.kept)) {
		line = strings.TrimSpace(strings.Map(func(r rune) rune {
			if unicode.IsPrint(r) {
				return r
			}
			return -1
		}, line))
		if line != "" {
			last = line
		}
	}
	return last
}

// password runs the password command, which may use PGHOST, PGPORT and PGUSER.
func (s *session) password(ctx context.Context, to pool.Endpoint) (string, time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, passwordTimeout)
	defer cancel()
	var out, complaint tail
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", s.cli.PasswordCommand)
	cmd.Env = append(append([]string{}, s.environ...), "PGHOST="+to.Host, "PGPORT="+strconv.Itoa(int(to.Port)), "PGUSER="+to.User)
	cmd.Stdout, cmd.Stderr = &out, &complaint
	// What the shell has started ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	password := strings.TrimRight(string(out.kept), "\r\n")
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		err = &passwordError{fmt.Sprintf("no answer within %s", passwordTimeout)}
	case ctx.Err() != nil:
		err = ctx.Err()
	case err != nil:
		reason := err.Error()
		if line := complaint.lastLine(); line != "" {
			reason += ": " + line
		}
		err = &passwordError{reason}
	case password == "":
		err = &passwordError{"it printed nothing"}
	case out.all > maxPassword:
		err = &passwordError{fmt.Sprintf("it printed more than %d bytes", maxPassword)}
	case strings.ContainsAny(password, "\r\n"):
		err = &passwordError{"it printed more than one line"}
	}
	if err != nil {
		return "", time.Time{}, err
	}
	if s.cli.PasswordLifetime == 0 {
		return password, time.Time{}, nil
	}
	return password, time.Now().Add(s.cli.PasswordLifetime), nil
}
