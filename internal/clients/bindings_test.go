package clients_test

import (
	"testing"

	"github.com/pithworks/pith/tasking"
	"github.com/pithworks/pith/worker"
)

// The script says what holds; see there.
func TestPulpsBindingsWork(t *testing.T) {
	t.Parallel()
	python := program(t, "python")
	d := deploy(t, worker.Config{}, "one@test", "two@test")
	done, leader := d.group(t, 0)
	d.reaches(t, tasking.Completed, leader)
	busy, leader := d.group(t, 600, 600)
	d.reaches(t, tasking.Completed, leader)
	if r := run(t, t.TempDir(), nil, python, source(t, "bindings.py"), d.url, done, busy); r.code != 0 {
		t.Errorf("status %d\n%s%s", r.code, r.out, r.err)
	}
}
