package isolate_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pithworks/pith/internal/isolate"
)

func TestMain(m *testing.M) {
	isolate.Serve(obey)
	goleak.VerifyTestMain(m)
}

// order is what a child of the tests is to do.
type order struct {
	Do     string
	Text   string
	Number int
}

var kept [][]byte // memory

// obey is the children's function.
func obey(ctx context.Context, p *isolate.Process, body json.RawMessage) json.RawMessage {
	var o order
	if err := json.Unmarshal(body, &o); err != nil {
		return text("bad order: " + err.Error())
	}
	switch o.Do {
	case "echo":
		return text(o.Text)
	case "pid":
		return text(fmt.Sprint(os.Getpid()))
	case "environment":
		return text(strings.Join(os.Environ(), "\n"))
	case "call":
		answer, err := p.Call(ctx, "ask", text(o.Text))
		if err != nil {
			return text(err.Error())
		}
		return answer
	case "call on": // in the background, for ever
		go func() {
			for ctx := context.Background(); ; {
				c, cancel := context.WithTimeout(ctx, time.Millisecond)
				_, _ = p.Call(c, "stray", text("late"))
				cancel()
			}
		}()
		return text("")
	case "note":
		for i := range o.Number {
			p.Note(text(fmt.Sprint(i)))
		}
		return text("")
	case "heed":
		p.Note(text("ready"))
		<-ctx.Done()
		return text(context.Cause(ctx).Error())
	case "hang":
		p.Note(text("ready"))
		select {}
	case "exit":
		fmt.Println("goodbye")
		os.Exit(o.Number)
	case "once": // and die at once
		f, err := os.OpenFile(o.Text, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = f.WriteString("begun\n")
		}
		if err != nil {
			return text(err.Error())
		}
		os.Exit(2)
	case "print":
		fmt.Print(o.Text)
		return text("")
	case "print and exit":
		fmt.Println(o.Text)
		os.Exit(2)
	case "daemon": // in a session of its own
		cmd := exec.Command("setsid", "sleep", "1000")
		if err := cmd.Start(); err != nil {
			return text(err.Error())
		}
		p.Note(text(fmt.Sprint(cmd.Process.Pid)))
		if o.Text == "hang" {
			select {}
		}
		return text("")
	case "signal":
		_ = syscall.Kill(os.Getpid(), syscall.Signal(o.Number))
		select {}
	case "allocate": // so many MiB, and keep them
		kept = nil
		for range o.Number {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			kept = append(kept, b)
		}
		if o.Text == "hang" {
			select {}
		}
		return text("")
	case "burn": // so many ms of CPU
		var before, now syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
		for now.Utime.Nano()-before.Utime.Nano() < int64(o.Number)*1e6 {
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &now)
		}
		return text("")
	case "directory":
		dir, err := os.Getwd()
		if err == nil {
			err = errors.Join(os.WriteFile("file", []byte("x"), 0o600), os.MkdirAll("a/b", 0o700), os.Chmod("a", 0o500))
		}
		if err != nil {
			return text(err.Error())
		}
		if os.TempDir() != dir {
			return text("temporary files go to " + os.TempDir())
		}
		return text(dir)
	case "descendants": // sleep for long; the second is an orphan soon
		cmd := exec.Command("/bin/sh", "-c", "sleep 1000 & sleep 1001 & echo $!")
		out, err := cmd.StdoutPipe()
		if err != nil || cmd.Start() != nil {
			return text("cannot start")
		}
		var pid int
		if _, err := fmt.Fscan(out, &pid); err != nil {
			return text(err.Error())
		}
		p.Note(text(fmt.Sprint(pid)))
		if o.Text == "hang" {
			select {}
		}
		return text("")
	}
	return text("unknown order " + o.Do)
}

func text(s string) json.RawMessage {
	raw, _ := json.Marshal(s) // of a text
	return raw
}

func untext(t *testing.T, raw json.RawMessage) string {
	t.Helper()
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		t.Fatalf("answer %q: %v", raw, err)
	}
	return s
}
