package witness_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"

	"github.com/pithworks/pith/chaos/witness"
)

func record(t *testing.T) (r *witness.Recorder, file, socket string) {
	t.Helper()
	dir := t.TempDir()
	file, socket = filepath.Join(dir, "log"), filepath.Join(dir, "socket")
	r, err := witness.Record(file, socket)
	if err != nil {
		t.Fatal(err)
	}
	return r, file, socket
}

func TestWorldRefusesWhoComesTooLate(t *testing.T) {
	t.Parallel()
	r, _, _ := record(t)
	for i, test := range []struct {
		token    int64
		reserved []string
		want     bool
	}{
		{10, []string{"a"}, true},
		{10, []string{"a"}, true},
		{9, []string{"a"}, false},
		{9, []string{"b"}, true},
		{12, []string{"shared:a"}, true},
		{11, []string{"shared:a"}, true}, // who shares may come in any order
		{11, []string{"a"}, false},
		{9, []string{"shared:a"}, false},
		{13, []string{"c", "b"}, true},
		{12, []string{"d", "c"}, false},
		{11, []string{"d"}, true}, // what was refused leaves no trace
		{1, nil, true},
	} {
		if got := r.Add(witness.Event{Kind: witness.Begun, Token: test.token, Reserved: test.reserved}); got != test.want {
			t.Errorf("%d: token %d at %v: %v", i, test.token, test.reserved, got)
		}
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func TestReportsAreInTheLogBeforeTheyReturn(t *testing.T) {
	t.Parallel()
	r, file, socket := record(t)
	task := uuid.New()
	one, err := witness.Dial(t.Context(), socket, "one")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []witness.Event{
		{Kind: witness.Begun, Task: task, Token: 5, Reserved: []string{"a"}},
		{Kind: witness.Touched, Task: task, Token: 5, Reserved: []string{"a"}},
		{Kind: witness.Touched, Task: task, Token: 4, Reserved: []string{"a"}},
	} {
		accepted, err := one.Report(e)
		if err != nil || accepted != (e.Token == 5) {
			t.Errorf("%s: %v, %v", e.Kind, accepted, err)
		}
	}
	got := r.Events()
	if len(got) != 2 || got[0].Process != "one" || got[0].Conn == 0 || got[0].N != 1 || !got[1].Refused || got[1].At < got[0].At {
		t.Errorf("%+v", got)
	}
	if err := one.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	events, err := witness.Read(f)
	if err != nil || len(events) != 3 || events[2].Kind != witness.Gone || events[2].Conn != events[0].Conn {
		t.Errorf("%+v, %v", events, err)
	}
}
