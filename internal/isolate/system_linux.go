package isolate

import (
	"bytes"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// program is what children run: the same file as this process, even if another one has taken its name since.
func program() (string, error) { return "/proc/self/exe", nil }

// parentDied is the signal that the kernel sends to a child when its parent's thread dies. Not SIGKILL: the child
// takes its process group with it.
const parentDied = syscall.SIGPWR

// attributes put a child into a process group of its own, and tie it to the thread that starts it.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: parentDied}
}

// adopt prepares a child: it dies with its parent, becomes the parent of orphans among its descendants, so that it
// knows of them, and is the first to go when the machine runs out of memory.
func adopt() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, parentDied)
	go func() {
		<-c
		die()
	}()
	// What fails here is a comfort, not a guarantee.
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	_ = os.WriteFile("/proc/self/comm", []byte(childName), 0)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("500"), 0)
}

// stray reports whether processes are left that the job has started, and collects those that have ended.
func stray() bool {
	for {
		switch pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); {
		case err == syscall.EINTR:
		case err != nil:
			return false // there are none
		case pid == 0:
			return true
		}
	}
}

// killDescendants kills what a process has started, and what that has, whatever groups they are in. Their orphans are
// the process's own: see adopt.
func killDescendants(pid int) {
	for range 3 { // they may start others meanwhile
		list := descendants(pid)
		for _, d := range list {
			_ = syscall.Kill(d, syscall.SIGKILL) // it may have ended
		}
		if len(list) == 0 {
			return
		}
	}
}

func descendants(pid int) []int {
	tasks, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	if err != nil {
		return nil
	}
	var all []int
	for _, task := range tasks {
		list, err := os.ReadFile(task)
		if err != nil {
			continue // it has ended, or the kernel does not tell
		}
		for word := range bytes.FieldsSeq(list) {
			if d, err := strconv.Atoi(string(word)); err == nil {
				all = append(append(all, d), descendants(d)...)
			}
		}
	}
	return all
}

// oomKills counts the processes of this one's cgroup that the kernel has killed for want of memory; 0: not known.
func oomKills() int64 {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return 0
	}
	_, path, ok := bytes.Cut(own, []byte("0::"))
	if !ok {
		return 0 // not of the second version
	}
	path, _, _ = bytes.Cut(path, []byte("\n"))
	events, err := os.ReadFile("/sys/fs/cgroup" + string(path) + "/memory.events")
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(events, []byte("oom_kill "))
	value, _, _ := bytes.Cut(rest, []byte("\n"))
	n, err := strconv.ParseInt(string(value), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// leaseClock is the time in nanoseconds on a clock that all processes of the machine share, and nobody can set.
func leaseClock() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic("isolate: read CLOCK_MONOTONIC: " + err.Error()) // Linux always has it
	}
	return t.Nano()
}

// forgetPeak makes peakMemory count anew.
func forgetPeak() {
	// Where the kernel cannot, the peak is that of the process's whole life.
	_ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)
}

// peakMemory is the most that a process has had resident since forgetPeak, in bytes; 0: not known.
func peakMemory(pid int) int64 {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(status, []byte("VmHWM:"))
	value, _, _ := bytes.Cut(rest, []byte(" kB"))
	kB, err := strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64)
	if err != nil {
		return 0
	}
	return kB << 10
}

// memory is what a process has resident, in bytes; 0: not known.
func memory(pid int) int64 {
	statm, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if err != nil {
		return 0
	}
	fields := bytes.Fields(statm)
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseInt(string(fields[1]), 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}

// LimitsMemory reports whether memory can be limited on this system.
const LimitsMemory = true
