package rdsproxy

import (
	"testing"
)

func TestClientsShareOneServerConnection(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 1})
	a, b := p.connect(t), p.connect(t)
	pid := backend(t, a)
	for range 3 {
		if got := backend(t, b); got != pid {
			t.Errorf("second client is on process %s, first on %s", got, pid)
		}
		if got := backend(t, a); got != pid {
			t.Errorf("first client moved from process %s to %s", pid, got)
		}
	}
	if f := p.Findings(); len(f) != 0 {
		t.Errorf("findings: %+v", f)
	}
}

func TestPinnedClientKeepsItsServerConnection(t *testing.T) {
	t.Parallel()
	p := startProxy(t, Config{PoolSize: 2})
	a, b := p.connect(t), p.connect(t)
	pid := backend(t, a)
	query(t, a, "SET work_mem = '1MB'")
	if got := backend(t, a); got != pid {
		t.Errorf("pinned client moved from process %s to %s", pid, got)
	}
	for range 3 {
		if got := backend(t, b); got == pid {
			t.Errorf("another client got process %s, which is pinned", got)
		}
	}
	if n := p.Metrics().DatabaseConnectionsCurrentlySessionPinned; n != 1 {
		t.Errorf("%d sessions are pinned, want 1", n)
	}
	if got := query(t, a, "SHOW work_mem")[0]; got != "1MB" {
		t.Errorf("work_mem is %s", got)
	}
}
