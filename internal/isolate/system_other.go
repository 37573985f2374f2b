//go:build !linux

package isolate

import (
	"os"
	"syscall"
	"time"
)

func program() (string, error) { return os.Executable() }

// attributes put a child into a process group of its own. Its pipe tells it of its parent's death.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func adopt() {}

// stray cannot tell here.
func stray() bool { return false }

// killDescendants leaves it to the process group here.
func killDescendants(int) {}

func oomKills() int64 { return 0 }

// leaseClock is the wall clock here: whoever sets it back prolongs leases.
func leaseClock() int64 { return time.Now().UnixNano() }

func forgetPeak() {}

func peakMemory(int) int64 { return 0 }

func memory(int) int64 { return 0 }

// LimitsMemory reports whether memory can be limited on this system.
const LimitsMemory = false
