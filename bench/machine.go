package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
)

// Machine is what the figures were measured on.
type Machine struct {
	CPU    string `json:"cpu"`
	CPUs   int    `json:"cpus"`
	Memory string `json:"memory"`
	Kernel string `json:"kernel"`
	// Load is the load average of the minute before the start.
	Load string `json:"load"`
}

func thisMachine() Machine {
	m := Machine{
		CPU: fieldOf("/proc/cpuinfo", "model name"), CPUs: runtime.NumCPU(),
		Kernel: firstOf("/proc/sys/kernel/osrelease"), Load: firstOf("/proc/loadavg"),
	}
	var kB int
	if _, err := fmt.Sscanf(fieldOf("/proc/meminfo", "MemTotal"), "%d kB", &kB); err == nil {
		m.Memory = fmt.Sprintf("%.1f GiB", float64(kB)/(1<<20))
	}
	return m
}

func (m Machine) String() string {
	return fmt.Sprintf("%d × %s, %s of memory, Linux %s; load average before the start: %s", m.CPUs, m.CPU, m.Memory, m.Kernel, m.Load)
}

// fieldOf is the value of a "name: value" line, or a word that says that there is none.
func fieldOf(path, name string) string {
	f, err := os.Open(path)
	if err != nil {
		return unknown
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return unknown
}

// firstOf is the first word of a file.
func firstOf(path string) string {
	text, err := os.ReadFile(path)
	if fields := strings.Fields(string(text)); err == nil && len(fields) > 0 {
		return fields[0]
	}
	return unknown
}

const unknown = "unknown"

// moduleVersion is the version of a module that this program was built with.
func moduleVersion(path string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return unknown
	}
	for _, m := range info.Deps {
		if m.Path == path {
			return m.Version
		}
	}
	return unknown
}
