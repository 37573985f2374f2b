package dbtest

import (
	"syscall"
	"testing"
	"time"
)

// Measure times run, which does b.N things. Besides the time and the allocations it reports the CPU time of
// this process alone, without the pooler's and the database's: client-ns/op.
func Measure(b *testing.B, run func() error) {
	b.Helper()
	b.ReportAllocs()
	b.ResetTimer()
	before := cpuTime(b)
	if err := run(); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "client-ns/op")
	b.StopTimer()
}

// cpuTime is the CPU time that this process has used.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
