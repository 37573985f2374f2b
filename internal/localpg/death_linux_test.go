package localpg

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// watch returns a function that waits until a process that is not our child has
// exited.
func watch(t *testing.T, pid int) (wait func()) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return func() {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			n, err := unix.Poll(fds, 30_000)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || n != 1 {
				t.Errorf("process %d goes on (%v)", pid, err)
			}
			return
		}
	}
}

func TestKilledProcessLeavesNothing(t *testing.T) {
	t.Parallel()
	h := startHelper(t, Config{Settings: unsafe()}, nil)
	postgres, bouncer := watch(t, h.Postgres), watch(t, h.Bouncer)
	if err := h.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = h.cmd.Wait()
	postgres()
	bouncer()
	start(t, Config{Settings: unsafe()})
	wantNoFile(t, h.Dir)
}
