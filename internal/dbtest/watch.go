package dbtest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pithworks/pith/internal/resend"
)

// patience bounds what Until waits for.
const patience = 90 * time.Second

// Until looks again and again for what other processes do, and fails the test if it does not come.
func Until(t testing.TB, what string, holds func(context.Context) (bool, error)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		ok, err := holds(ctx)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if ok {
			return
		}
		if resend.Sleep(ctx, 10*time.Millisecond) != nil {
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

// Dead makes a condition for Until: these processes are gone, or nothing but their exit status is left.
func Dead(pids ...int) func(context.Context) (bool, error) {
	return func(context.Context) (bool, error) {
		for _, pid := range pids {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			_, state, _ := strings.Cut(string(stat), ") ")
			if err == nil && !strings.HasPrefix(state, "Z") {
				return false, nil
			}
		}
		return true, nil
	}
}

// Output takes what many write, such as a log, for a test to look at meanwhile.
type Output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write takes what is written.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

// String is all that was written.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}
