package demo

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/tasking"
	"github.com/pithworks/pith/worker"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

// tree makes a directory of files, by name.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestWalkFindsRegularFilesOnly(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{
		"a": "1", "with space": "", "x,y": "22", "d/ü": "333", "line\nbreak": "4", "\xff": "5", "OUT": "old",
	})
	if err := os.Symlink("a", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	files, skipped, err := walk(t.Context(), dir, filepath.Join(dir, "OUT"), filepath.Join(dir, "none"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]file{{"a", 1}, {"d/ü", 3}, {"with space", 0}, {"x,y", 2}}, files); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]Skipped{
		{"line\nbreak", "a manifest cannot hold a line break in a name"}, {"�", "the name is not UTF-8"},
	}, skipped); diff != "" {
		t.Errorf("skipped (-want +got):\n%s", diff)
	}
}

func TestWalkOfNoDirectoryIsAnError(t *testing.T) {
	t.Parallel()
	if _, _, err := walk(t.Context(), filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no error")
	}
}

func TestCutKeepsOrderAndLimits(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		files   []file
		workers int
		least   int // chunks
	}{
		{name: "nothing", workers: 4},
		{name: "one", files: []file{{"a", 5}}, workers: 4, least: 1},
		{name: "empty files", files: slices.Repeat([]file{{"e", 0}}, 64), workers: 4, least: 32},
		{name: "a large one among small ones", files: []file{{"a", 1}, {"b", 1 << 40}, {"c", 1}}, workers: 1, least: 3},
		{name: "many", files: slices.Repeat([]file{{"m", 10}}, 100_000), workers: 2, least: 200},
	} {
		chunks := cut("dir", tt.files, tt.workers)
		var got []file
		for i, c := range chunks {
			got = append(got, c.Files...)
			if c.Number != i || len(c.Files) == 0 || len(c.Files) > chunkFiles || len(c.Files) > 1 && c.bytes() > chunkBytes {
				t.Errorf("%s: chunk %d has number %d, %d files, %d bytes", tt.name, i, c.Number, len(c.Files), c.bytes())
			}
		}
		if !slices.Equal(got, tt.files) {
			t.Errorf("%s: files are lost or moved", tt.name)
		}
		if len(chunks) < tt.least {
			t.Errorf("%s: %d chunks, want at least %d", tt.name, len(chunks), tt.least)
		}
	}
}

// newGroup returns a client for the demo's types on a new database, and a group.
func newGroup(t *testing.T) (*tasking.Client, uuid.UUID) {
	t.Helper()
	db := dbtest.New(t)
	registry, err := tasking.NewRegistry(Types()...)
	if err != nil {
		t.Fatal(err)
	}
	client, err := tasking.New(db.Pool, tasking.Config{Registry: registry, Log: db.Log})
	if err != nil {
		t.Fatal(err)
	}
	group, err := client.NewGroup(t.Context(), t.Name())
	if err != nil {
		t.Fatal(err)
	}
	return client, group
}

// runAll dispatches tasks, runs them, and returns them.
func runAll(t *testing.T, client *tasking.Client, requests ...tasking.Request) []tasking.Task {
	t.Helper()
	tasks, err := client.DispatchMany(t.Context(), requests)
	if err != nil {
		t.Fatal(err)
	}
	w, err := worker.New(client, worker.Config{Burst: true, Concurrency: 2})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	var ids []uuid.UUID
	for _, d := range tasks {
		ids = append(ids, d.ID)
	}
	ended, err := client.Wait(t.Context(), ids...)
	if err != nil {
		t.Fatal(err)
	}
	return ended
}

func TestFilesThatVanishAreSkipped(t *testing.T) {
	t.Parallel()
	client, group := newGroup(t)
	dir := tree(t, map[string]string{"here": "text"})
	if err := os.Mkdir(filepath.Join(dir, "now a directory"), 0o755); err != nil {
		t.Fatal(err)
	}
	ended := runAll(t, client, digestType.Request(
		chunk{Dir: dir, Files: []file{{"gone", 7}, {"here", 4}, {"now a directory", 1}}}, tasking.Options{Group: &group}))
	got, err := digestType.Result(ended[0])
	if err != nil {
		t.Fatal(err)
	}
	want := digests{
		Entries: []entry{{"here", "982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1", 4}},
		Skipped: []Skipped{{"gone", "no such file or directory"}, {"now a directory", errNotRegular.Error()}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("digests (-want +got):\n%s", diff)
	}
	// The bar must become full whatever happens to the files.
	if p := ended[0].Progress; len(p) != 1 || p[0].Done != 12 || *p[0].Total != 12 || p[0].State != tasking.Completed {
		t.Errorf("progress is %+v", p)
	}
}

func TestManifestIsNotWrittenIfAChunkIsMissing(t *testing.T) {
	t.Parallel()
	client, group := newGroup(t)
	dir := tree(t, map[string]string{"a": "1"})
	out := filepath.Join(t.TempDir(), "OUT")
	o := tasking.Options{Group: &group}
	ended := runAll(t, client,
		digestType.Request(chunk{Dir: dir, Files: []file{{"a", 1}}}, tasking.Options{Group: &group, Shared: []string{"r"}}),
		digestType.Request(chunk{Dir: dir + "none", Number: 1}, tasking.Options{Group: &group, Shared: []string{"r"}}),
		manifestType.Request(order{Chunks: 2, Out: out, Temp: out + ".tmp"}, tasking.Options{Group: &group, Exclusive: []string{"r"}}))
	if e := ended[2].Error; e == nil || !strings.Contains(e.Description, "1 of 2 chunks have no digests") {
		t.Errorf("manifest task is %s: %v", ended[2].State, e)
	}
	if _, err := os.Stat(out); !os.IsNotExist(err) {
		t.Errorf("the manifest exists: %v", err)
	}

	ended = runAll(t, client, digestType.Request(chunk{Dir: dir, Number: 1}, o))
	if ended[0].State != tasking.Completed {
		t.Fatal(ended[0].Error)
	}
	ended = runAll(t, client, manifestType.Request(order{Chunks: 2, Out: out, Temp: out + ".tmp"}, o))
	if ended[0].State != tasking.Completed {
		t.Errorf("manifest task is %s: %v", ended[0].State, ended[0].Error)
	}
	entries, err := readManifest(out)
	if err != nil || len(entries) != 1 || entries[0].Path != "a" {
		t.Errorf("manifest has %v, error %v", entries, err)
	}
}

func TestCheckFindsWhatIsWrong(t *testing.T) {
	t.Parallel()
	const one = "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b" // of "1"
	begun := time.Now().Add(time.Hour)                                             // all files are older
	for _, tt := range []struct {
		name    string
		entries []entry
		limit   int64
		since   time.Time
		want    Check
	}{
		{name: "right", entries: []entry{{"a", one, 1}, {"b,c", one, 1}}, want: Check{Lines: 2, Hashed: 2, HashedBytes: 2, All: true}},
		{name: "sample", entries: []entry{{"a", one, 1}, {"b,c", one, 1}}, limit: 1, want: Check{Lines: 2, Hashed: 1, HashedBytes: 1}},
		{
			name: "line is missing", entries: []entry{{"a", one, 1}},
			want: Check{Lines: 1, Hashed: 1, HashedBytes: 1, All: true, Problems: []string{"b,c: not in the manifest"}},
		},
		{
			name: "order", entries: []entry{{"b,c", one, 1}, {"a", one, 1}},
			want: Check{Lines: 2, Hashed: 2, HashedBytes: 2, All: true, Problems: []string{"a: not in order, or twice"}},
		},
		{
			name: "size", entries: []entry{{"a", one, 2}, {"b,c", one, 1}},
			want: Check{Lines: 2, Hashed: 2, HashedBytes: 3, All: true, Problems: []string{"a: 2 bytes in the manifest, 1 on the disk"}},
		},
		{
			name: "digest", entries: []entry{{"a", strings.Repeat("0", 64), 1}, {"b,c", one, 1}},
			want: Check{Lines: 2, Hashed: 2, HashedBytes: 2, All: true, Problems: []string{"a: digest " + strings.Repeat("0", 64) + " in the manifest, " + one + " on the disk"}},
		},
		{
			name: "changed and gone meanwhile", entries: []entry{{"a", one, 2}, {"gone", one, 1}}, since: time.Now().Add(-time.Hour),
			want: Check{Lines: 2, Hashed: 1, HashedBytes: 2, Changed: 4, All: true}, // a, gone and b,c; gone once more
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := tree(t, map[string]string{"a": "1", "b,c": "1"})
			out := filepath.Join(dir, "OUT")
			if err := writeManifest(out, tt.entries); err != nil {
				t.Fatal(err)
			}
			limit, since := tt.limit, tt.since
			if limit == 0 {
				limit = hashLimit
			}
			if since.IsZero() {
				since = begun
			}
			got, err := check(t.Context(), dir, out, nil, since, limit)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("check (-want +got):\n%s", diff)
			}
		})
	}
}

func TestManifestThatIsNoneIsRefused(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"one\n", "a,b\n", "a,b,3\n", "a," + strings.Repeat("0", 64) + ",x\n"} {
		path := filepath.Join(t.TempDir(), "OUT")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := readManifest(path); err == nil || !strings.Contains(err.Error(), ":1: not a line") {
			t.Errorf("%q: error %v", text, err)
		}
	}
}

func TestTextsOfNumbers(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 3 << 19: "1.5 MiB", 5 << 50: "5120.0 TiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("bytesText(%d) = %s, want %s", n, got, want)
		}
	}
	l := latencies([]time.Duration{4 * time.Second, time.Millisecond, 2 * time.Millisecond})
	if got, want := l.String(), "p50 2ms, p95 2ms, max 4s"; got != want {
		t.Errorf("latencies are %s, want %s", got, want)
	}
	if got := latencies(nil).String(); got != "-" {
		t.Errorf("no latencies are %s", got)
	}
}

func TestSummaryReportsProblems(t *testing.T) {
	t.Parallel()
	sum := Summary{
		Files: 2, Bytes: 3 << 20, Tasks: 4, Completed: 3, Failed: 1, Killed: 1, Workers: 2, Elapsed: 2 * time.Second,
		Skipped: []Skipped{{"a\nb", "why"}}, Pooler: &Pooler{Clients: 12, Servers: 3, Transactions: 40},
		Check: Check{Lines: 2, Problems: []string{"x: wrong"}},
	}
	var text strings.Builder
	if err := sum.Write(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`skipped "a\nb": why`, "2, 3.0 MiB, 1 skipped", "2.0 tasks/s, 1.5 MiB/s", "1 killed and replaced",
		"12 from clients shared 3 to the server", "40, 10.0 for each task", "1 PROBLEMS", "x: wrong",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is missing in\n%s", want, &text)
		}
	}
	if sum.OK() {
		t.Error("it is OK")
	}
	raw, err := json.Marshal(sum)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(raw, &fields); err != nil {
		t.Fatal(err)
	}
	if fields["elapsed_seconds"] != 2.0 || fields["tasks_per_second"] != 2.0 || fields["tasks"] != 4.0 {
		t.Errorf("JSON is %s", raw)
	}
}

func TestConsoleCountsWhatGoesThroughThePooler(t *testing.T) {
	t.Parallel()
	db := dbtest.New(t)
	if !dbtest.Pooled() || db.Services.Pooler.AdminURL() == "" {
		t.Skip("this run has no PgBouncer, whose console the test reads")
	}
	c, err := openConsole(t.Context(), db.Services.Pooler.AdminURL(), db.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close(context.WithoutCancel(t.Context()))
	for range 3 {
		if err := db.Pool.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	seen, err := c.sum(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if seen.Clients < 1 || seen.Servers < 1 || seen.Transactions < 3 {
		t.Errorf("seen is %+v, want at least a connection on either side and three transactions", seen)
	}
}
