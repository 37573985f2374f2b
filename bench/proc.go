package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of the times in /proc/PID/stat, the same on all of Linux.
const tick = 10 * time.Millisecond

// procStat is what /proc/PID/stat tells.
type procStat struct {
	parent int
	own    time.Duration // CPU time of all its threads
	waited time.Duration // that of the children which it has waited for
}

// parseStat reads a line of /proc/PID/stat, whose second field is a name that may hold anything.
func parseStat(line string) (procStat, error) {
	const parent, utime, stime, cutime, cstime = 1, 11, 12, 13, 14 // after the name
	end := strings.LastIndexByte(line, ')')
	fields := strings.Fields(line[end+1:])
	if end < 0 || len(fields) <= cstime {
		return procStat{}, fmt.Errorf("process status %.40q: too short", line)
	}
	var n [cstime + 1]int
	for _, i := range []int{parent, utime, stime, cutime, cstime} {
		var err error
		if n[i], err = strconv.Atoi(fields[i]); err != nil {
			return procStat{}, fmt.Errorf("process status: %w", err)
		}
	}
	return procStat{
		parent: n[parent],
		own:    time.Duration(n[utime]+n[stime]) * tick,
		waited: time.Duration(n[cutime]+n[cstime]) * tick,
	}, nil
}

func readStat(path string) (procStat, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return procStat{}, fmt.Errorf("read process status: %w", err)
	}
	return parseStat(string(text))
}

func statOf(pid int) (procStat, error) { return readStat(fmt.Sprintf("/proc/%d/stat", pid)) }

// processTime is the CPU time of a process; that of process 0, which stands for none, is zero.
func processTime(pid int) (time.Duration, error) {
	if pid == 0 {
		return 0, nil
	}
	s, err := statOf(pid)
	return s.own, err
}

// familyTime is the CPU time of a process and of its children, those that have exited included.
func familyTime(pid int) (time.Duration, error) {
	for {
		before, err := statOf(pid)
		if err != nil {
			return 0, err
		}
		paths, err := filepath.Glob("/proc/[0-9]*/stat")
		if err != nil {
			return 0, err
		}
		sum := before.own + before.waited
		for _, path := range paths {
			if s, err := readStat(path); err == nil && s.parent == pid { // else it is gone
				sum += s.own
			}
		}
		after, err := statOf(pid)
		if err != nil {
			return 0, err
		}
		if after.waited == before.waited {
			return sum, nil
		}
		// A child exited meanwhile, and may have been counted twice.
	}
}

// parseCPU reads the first line of /proc/stat: the time of all CPUs, and what of it they were at work or
// taken away by the machine below.
func parseCPU(line string) (all, busy time.Duration, err error) {
	const idle, iowait, guest = 3, 4, 8 // a guest's time is in user time, too
	fields := strings.Fields(strings.TrimPrefix(line, "cpu "))
	if !strings.HasPrefix(line, "cpu ") || len(fields) < guest {
		return 0, 0, fmt.Errorf("CPU times %.40q: too short", line)
	}
	for i, field := range fields[:guest] {
		n, err := strconv.Atoi(field)
		if err != nil {
			return 0, 0, fmt.Errorf("CPU times: %w", err)
		}
		all += time.Duration(n) * tick
		if i != idle && i != iowait {
			busy += time.Duration(n) * tick
		}
	}
	return all, busy, nil
}

func cpuTimes() (all, busy time.Duration, err error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, fmt.Errorf("read CPU times: %w", err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return parseCPU(line)
}
