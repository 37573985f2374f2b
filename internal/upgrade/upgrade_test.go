package upgrade

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/internal/localpg"
	"github.com/pithworks/pith/tasking"
)

// Built-in types of tasks, under Pulp's names.
const (
	types     = "pulpcore.app.tasks.test."
	dummyTask = types + "dummy_task"
	sleepTask = types + "sleep"
	quickTask = types + "asleep" // may run immediately
	failTask  = types + "failing_task"
	gooeyTask = types + "gooey_task" // in a process of its own, where the release has that
	groupTask = types + "dummy_group_task"
)

// slowest bounds a dispatch, its process's start included, while a migration waits for its locks: some waits of
// 1.5 s, and a busy machine. It is about locks; how fast a dispatch is, the benchmarks tell.
const slowest = 15 * time.Second

// pace is the pause of a dispatcher between two tasks: what is to be seen takes no more, and the machine does other things.
const pace = 50 * time.Millisecond

// A scene is a database, what goes on there, and what is to come of it.
type scene struct {
	t        *testing.T
	db       *dbtest.DB
	dir      string
	old, new program
	pooled   string // the database as everybody knows it
	group    string
	workers  []*worker
	lost     []uuid.UUID // tasks that a killed worker held

	mu   sync.Mutex
	sent []sent
}

// sent is a task that was dispatched.
type sent struct {
	id         uuid.UUID
	by         string // the dispatcher
	queued     bool   // at its dispatch: it has its place before the next one of the dispatcher
	immediate  bool
	want       string // its final state
	attempts   int    // that it takes
	begin, end time.Time
}

func TestReleasesLiveTogetherThroughAMigrationAndBack(t *testing.T) {
	if _, ok := dbtest.Shared(t).Pooler.(*localpg.Bouncer); !ok || !dbtest.Transactions() {
		t.Skip("needs PgBouncer in transaction mode, which other runs of the suite have")
	}
	s := raise(t)
	old, today := s.old, s.new

	// The old release alone.
	old.at(s.db.DirectURL).must(t, "migrate", "up", "--log-level=error")
	if previousRefusesNewer {
		s.blindfold()
		old = s.old
	}
	if old.schema < today.schema {
		for _, args := range [][]string{{"worker"}, {"task", "dispatch", dummyTask}, {"task", "list"}, {"doctor"}} {
			today.refused(t, "run `pith migrate up`", args...)
		}
	}
	s.group = strings.TrimSpace(old.must(t, "group", "create", "both releases'"))
	old.must(t, "schedule", "add", "tick", dummyTask, "--every=1s", "--exclusive=r0")
	veterans := []*worker{s.hire(old), s.hire(old)}
	stopOld := []func(){s.employ(old), s.employ(old)}
	s.ends(20)
	s.retry(old)

	// Upward.
	s.family(old)
	s.migrate(today.at(s.db.DirectURL), "up")
	s.at(today.schema)
	s.ends(10)

	// Both releases on the new schema, and one process dies.
	recruits := []*worker{s.hire(today), s.hire(today)}
	stopNew := []func(){s.employ(today), s.employ(today)}
	s.retry(today)
	s.busy(append(recruits, veterans...)...)
	s.family(today)
	dead := s.kill(today)
	s.ends(20)

	// The new release alone.
	for _, stop := range stopOld {
		stop()
	}
	for _, w := range veterans {
		if w != dead {
			w.leave(t)
		}
	}
	s.gooey(today)
	s.ends(10)

	// Back: the old release comes again, on the schema of the new one, which leaves.
	if previousRefusesNewer && old.schema < today.schema {
		for _, args := range [][]string{{"worker"}, {"task", "list"}} {
			old.at(s.pooled).refused(t, fmt.Sprintf("version %d, this binary knows only up to %d", today.schema, old.schema), args...)
		}
	}
	veterans = []*worker{s.hire(old), s.hire(old)}
	stopOld = []func(){s.employ(old), s.employ(old)}
	s.busy(veterans...)
	s.gooey(old)
	s.family(old)
	s.retry(old)
	for _, stop := range stopNew {
		stop()
	}
	for _, w := range recruits {
		if w != dead {
			w.leave(t)
		}
	}
	s.ends(10)

	// Downward, through the pooler.
	s.migrate(today, "down-to", strconv.FormatInt(old.schema, 10))
	s.at(old.schema)
	s.ends(20)
	old.at(s.pooled).must(t, "task", "list")
	if old.schema < today.schema {
		today.refused(t, "run `pith migrate up`", "worker")
	}

	for _, stop := range stopOld {
		stop()
	}
	old.must(t, "schedule", "remove", "tick")
	dbtest.Until(t, "all tasks are final", func(ctx context.Context) (done bool, err error) {
		err = s.db.Direct.QueryRow(ctx, "SELECT NOT EXISTS (SELECT FROM task WHERE finished_at IS NULL)").Scan(&done)
		return done, err
	})
	for _, w := range veterans {
		w.leave(t)
	}
	s.check()
}

// raise builds the binaries and makes a database without a schema, behind a pooler that knows more than one role.
func raise(t *testing.T) *scene {
	t.Helper()
	s := &scene{t: t, db: dbtest.Empty(t), dir: t.TempDir()}
	s.old, s.new = programs(t)
	bouncer, err := s.db.Services.Server.StartBouncer(t.Context(), localpg.BouncerConfig{PoolSize: 8, Settings: map[string]string{"auth_user": "pith"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(bouncer.Stop)
	s.pooled = bouncer.URL(s.db.Name)
	s.old.url, s.new.url = s.pooled, s.pooled
	return s
}

// blindfold gives the old release a role that sees no version of the schema but its own. All else is the same database.
func (s *scene) blindfold() {
	s.t.Helper()
	const role = "previous"
	s.execute(fmt.Sprintf(`CREATE SCHEMA %s; CREATE ROLE %[1]s LOGIN SUPERUSER; ALTER ROLE %[1]s IN DATABASE %[2]s SET search_path = %[1]s, public;
		CREATE VIEW %[1]s.goose_db_version AS SELECT * FROM public.goose_db_version WHERE version_id <= %[3]d`, role, s.db.Name, s.old.schema))
	s.t.Cleanup(func() {
		if _, err := s.db.Direct.Exec(context.WithoutCancel(s.t.Context()), fmt.Sprintf("DROP SCHEMA %s CASCADE; DROP ROLE %[1]s", role)); err != nil {
			s.t.Error(err)
		}
	})
	s.old.url = strings.Replace(s.pooled, "//pith@", "//"+role+"@", 1)
	if s.old.url == s.pooled {
		s.t.Fatalf("no role in %s", s.pooled)
	}
}

func (s *scene) execute(statement string) {
	s.t.Helper()
	if _, err := s.db.Direct.Exec(s.t.Context(), statement); err != nil {
		s.t.Fatalf("%s: %v", statement, err)
	}
}

// at checks the version of the schema.
func (s *scene) at(version int64) {
	s.t.Helper()
	var have int64
	if err := s.db.Direct.QueryRow(s.t.Context(), "SELECT max(version_id) FROM public.goose_db_version").Scan(&have); err != nil || have != version {
		s.t.Fatalf("the schema is at version %d, want %d: %v", have, version, err)
	}
}

// employ has a dispatcher dispatch one task after the other until it is stopped.
func (s *scene) employ(p program) (stop func()) {
	quit, ended := make(chan struct{}), make(chan struct{})
	name := p.name + "-" + uuid.NewString()
	go func() {
		defer close(ended)
		for n := 0; s.t.Context().Err() == nil; n++ {
			s.order(p, name, n)
			select {
			case <-quit:
				return
			case <-time.After(pace):
			}
		}
	}()
	stop = sync.OnceFunc(func() {
		close(quit)
		<-ended
	})
	s.t.Cleanup(stop)
	return stop
}

// order dispatches the nth task of a dispatcher.
func (s *scene) order(p program, by string, n int) {
	s.t.Helper()
	resource, other := fmt.Sprintf("r%d", n/10%3), fmt.Sprintf("r%d", (n/10+1)%3)
	task := sent{by: by, queued: true, want: "completed", attempts: 1}
	var args []string
	switch n % 10 {
	case 0:
		args = []string{sleepTask, `--args={"interval": 0.02}`, "--exclusive=" + resource}
	case 1, 2:
		args = []string{sleepTask, `--args={"interval": 0.02}`, "--shared=" + resource}
	case 3:
		args = []string{dummyTask, "--exclusive=" + resource, "--exclusive=" + other}
	case 4:
		args = []string{dummyTask, "--exclusive=" + resource, "--shared=" + other, "--priority=5"}
	case 5:
		args, task.queued = []string{dummyTask, "--exclusive=" + resource, "--not-before=300ms"}, false
	case 6:
		args, task.immediate = []string{quickTask, `--args={"interval": 0.01}`, "--immediate", "--shared=" + resource}, true
	case 7:
		args = []string{dummyTask, "--group=" + s.group}
	case 8:
		args, task.want = []string{failTask, "--exclusive=" + resource}, "failed"
	case 9:
		args, task.want = []string{sleepTask, `--args={"interval": 3600}`, "--exclusive=" + by}, "canceled"
	}
	task.begin = time.Now()
	id, ok := p.dispatch(s.t, args...)
	if !ok {
		return
	}
	task.id, task.end = id, time.Now()
	s.note(task)
	if task.want == "canceled" {
		if r := p.run(s.t, "task", "cancel", id.String()); r.code != 0 {
			s.t.Errorf("%s cancel: status %d: %s", p.name, r.code, r.err)
		}
	}
}

func (s *scene) note(task sent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, task)
}

// ends waits until so many more tasks have ended.
func (s *scene) ends(more int) {
	s.t.Helper()
	first := -1
	dbtest.Until(s.t, fmt.Sprintf("%d more tasks end", more), func(ctx context.Context) (bool, error) {
		var n int
		if err := s.db.Direct.QueryRow(ctx, "SELECT count(*) FROM task WHERE finished_at IS NOT NULL").Scan(&n); err != nil {
			return false, err
		}
		if first < 0 {
			first = n
		}
		return n >= first+more, nil
	})
}

// busy waits until each of these workers has begun tasks.
func (s *scene) busy(workers ...*worker) {
	s.t.Helper()
	for _, w := range workers {
		dbtest.Until(s.t, "a worker of the "+w.name+" release runs tasks", func(context.Context) (bool, error) { return len(w.started(s.t)) >= 3, nil })
	}
}

// retriable dispatches a task that may be tried three times. No built-in type is retried, so its kind is changed by hand
// before it is due.
func (s *scene) retriable(p program, args ...string) uuid.UUID {
	s.t.Helper()
	id, ok := p.dispatch(s.t, append(args, "--not-before=3s")...)
	if !ok {
		s.t.FailNow()
	}
	s.execute(`INSERT INTO task_kind (name, versions, max_attempts, backoff)
		SELECT DISTINCT name, versions, 3, interval '200 ms' FROM task_kind WHERE name IN ('` + failTask + `', '` + sleepTask + `') ON CONFLICT DO NOTHING`)
	tag, err := s.db.Direct.Exec(s.t.Context(), `UPDATE task t SET kind = n.id FROM task_kind k, task_kind n
		WHERE t.id = $1 AND t.kind = k.id AND n.name = k.name AND n.max_attempts = 3 AND t.state = 'waiting' AND t.blocked_on IS NULL`, id)
	if err != nil || tag.RowsAffected() != 1 {
		s.t.Fatalf("%s, %v", tag, err)
	}
	return id
}

// retry dispatches a task that fails at each of its three attempts.
func (s *scene) retry(p program) {
	s.t.Helper()
	s.note(sent{id: s.retriable(p, failTask), want: "failed", attempts: 3})
}

// children are how many tasks a family dispatches.
const children = 8

// family dispatches a task that dispatches others of its group for some seconds.
func (s *scene) family(p program) {
	s.t.Helper()
	id, ok := p.dispatch(s.t, groupTask, fmt.Sprintf(`--args={"inbetween": 0.5, "intervals": [0%s]}`, strings.Repeat(", 0.01", children-1)), "--group="+s.group)
	if !ok {
		s.t.FailNow()
	}
	s.note(sent{id: id, want: "completed", attempts: 1})
}

// gooey dispatches a task that runs in a process of its own, where a release has that, and waits for it.
func (s *scene) gooey(p program) {
	s.t.Helper()
	id, ok := p.dispatch(s.t, gooeyTask, `--args={"interval": 0.01}`)
	if !ok {
		s.t.FailNow()
	}
	s.note(sent{id: id, want: "completed", attempts: 1})
	p.must(s.t, "task", "wait", id.String())
	p.must(s.t, "task", "show", id.String())
}

// kill kills a worker that holds a task which may be retried. The other tasks that it holds fail.
func (s *scene) kill(p program) (dead *worker) {
	s.t.Helper()
	id := s.retriable(p, sleepTask, `--args={"interval": 2}`)
	s.note(sent{id: id, want: "completed", attempts: 2})
	var app uuid.UUID
	dbtest.Until(s.t, "the task runs that may be retried", func(ctx context.Context) (bool, error) {
		var name string
		err := s.db.Direct.QueryRow(ctx, "SELECT a.id, a.name FROM task t JOIN app_status a ON a.id = t.app_lock WHERE t.id = $1", id).Scan(&app, &name)
		for _, w := range s.workers {
			if name == fmt.Sprintf("%s-%d", w.name, w.cmd.Process.Pid) {
				dead = w
			}
		}
		if errors.Is(err, pgx.ErrNoRows) {
			err = nil
		}
		return dead != nil, err
	})
	if err := dead.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
	_ = dead.cmd.Wait() // killed
	// Nothing of it happens any more, and it is not missing yet.
	rows, err := s.db.Direct.Query(s.t.Context(), "SELECT id FROM task WHERE app_lock = $1", app)
	if err != nil {
		s.t.Fatal(err)
	}
	if s.lost, err = pgx.CollectRows(rows, pgx.RowTo[uuid.UUID]); err != nil {
		s.t.Fatal(err)
	}
	return dead
}

// migrate changes the schema, and checks that dispatches go on meanwhile. A transaction that has written to task is in
// the way: it stays open until the migration says so, if that wants a lock on task.
func (s *scene) migrate(p program, args ...string) {
	t := s.t
	t.Helper()
	tx, err := s.db.Direct.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), "LOCK TABLE task IN ROW EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	begin, blocked := time.Now(), false
	p.migration(t, func(line string) {
		blocked = true
		if who := fmt.Sprintf("pid %d ", tx.Conn().PgConn().PID()); p.url == s.db.DirectURL && !strings.Contains(line, who) {
			t.Errorf("the migration does not name %s, which is in its way: %s", who, line)
		}
		if err := tx.Rollback(t.Context()); err != nil && !errors.Is(err, pgx.ErrTxClosed) {
			t.Error(err)
		}
	}, args...)
	end := time.Now()
	_ = tx.Rollback(t.Context())
	s.ends(5) // those that waited behind it are among them
	s.mu.Lock()
	defer s.mu.Unlock()
	n, most := 0, time.Duration(0)
	for _, task := range s.sent {
		if task.end.After(begin) && task.begin.Before(end) {
			n++
			most = max(most, task.end.Sub(task.begin))
		}
	}
	t.Logf("migrate %v took %s (blocked: %t), and the slowest of %d dispatches meanwhile %s", args, end.Sub(begin), blocked, n, most)
	if n == 0 && blocked || most > slowest {
		t.Errorf("of %d dispatches during the migration the slowest took %s, want %s at most", n, most, slowest)
	}
}

// A final is a task at the end.
type final struct {
	id       uuid.UUID
	seq      int64
	state    string
	attempts int
	reason   string
	parent   *uuid.UUID
}

// check checks what has become of all tasks. Nothing runs any more.
func (s *scene) check() {
	s.t.Helper()
	t := s.t
	rows, err := s.db.Direct.Query(t.Context(), "SELECT id, seq, state::text, attempt, coalesce(error->>'reason', ''), parent_task FROM task")
	if err != nil {
		t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (f final, err error) {
		return f, row.Scan(&f.id, &f.seq, &f.state, &f.attempts, &f.reason, &f.parent)
	})
	if err != nil {
		t.Fatal(err)
	}
	finals := map[uuid.UUID]final{}
	for _, f := range list {
		finals[f.id] = f
	}
	runs := map[attempt]int{}
	for _, w := range s.workers {
		for _, a := range w.started(t) {
			runs[a]++
		}
	}
	for a, n := range runs {
		if n > 1 {
			t.Errorf("attempt %d of task %s ran %d times", a.number, a.task, n)
		}
	}
	ran := map[uuid.UUID]int{}
	for a := range runs {
		ran[a.task]++
	}

	dispatched, places := map[uuid.UUID]bool{}, map[string]int64{}
	for _, want := range s.sent { // each dispatcher's in their order
		dispatched[want.id] = true
		f, ok := finals[want.id]
		if !ok {
			t.Errorf("%s: task %s is lost", want.by, want.id)
			continue
		}
		if want.queued {
			if f.seq <= places[want.by] {
				t.Errorf("%s: task %s has place %d, the one before %d", want.by, f.id, f.seq, places[want.by])
			}
			places[want.by] = f.seq
		}
		s.checkEnd(want, f, ran[f.id])
	}
	others, families := 0, map[uuid.UUID]int{}
	for _, f := range finals { // of the schedule, and children
		if f.parent != nil {
			families[*f.parent]++
		}
		if !dispatched[f.id] {
			others++
			s.checkEnd(sent{id: f.id, by: "a task or the schedule", want: "completed", attempts: 1}, f, ran[f.id])
		}
	}
	for parent, n := range families {
		if finals[parent].state == "completed" && n != children {
			t.Errorf("task %s has %d children, want %d", parent, n, children)
		}
	}
	t.Logf("%d tasks were dispatched by commands and %d by tasks and the schedule, %d were held by a worker when it was killed", len(s.sent), others, len(s.lost))
	if others < 2*children {
		t.Errorf("tasks and the schedule have dispatched %d tasks", others)
	}

	rows, err = s.db.Direct.Query(t.Context(), `WITH held AS (
			SELECT t.id, t.seq, t.started_at, t.finished_at, CASE WHEN starts_with(r, 'shared:') THEN substr(r, 8) ELSE r END AS resource, NOT starts_with(r, 'shared:') AS exclusive
			FROM task t, unnest(t.reserved_resources_record) r WHERE t.started_at IS NOT NULL)
		SELECT a.resource || ': ' || b.id || ' began before ' || a.id || ' had ended'
		FROM held a JOIN held b ON b.resource = a.resource AND b.seq > a.seq AND (a.exclusive OR b.exclusive) WHERE b.started_at < a.finished_at LIMIT 10`)
	if err != nil {
		t.Fatal(err)
	}
	early, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(early) > 0 {
		t.Errorf("resources were not held one after the other: %v, %v", early, err)
	}

	s.new.must(t, "migrate", "up", "--log-level=error") // the invariants are those of today's schema
	broken, err := dbtest.Broken(t.Context(), s.db.Direct)
	if err != nil || len(broken) > 0 {
		t.Errorf("invariants are broken: %v, %v", broken, err)
	}
}

// checkEnd checks the end of one task, given how many of its attempts workers have begun.
func (s *scene) checkEnd(want sent, f final, ran int) {
	s.t.Helper()
	switch {
	case f.state == "failed" && f.reason == tasking.ReasonMissing && slices.Contains(s.lost, f.id):
	case f.state != want.want:
		s.t.Errorf("%s: task %s is %s, want %s: %s", want.by, f.id, f.state, want.want, f.reason)
	case f.state == "canceled":
		if f.attempts > 1 || ran > f.attempts {
			s.t.Errorf("%s: task %s was canceled in attempt %d, and %d have run", want.by, f.id, f.attempts, ran)
		}
	case f.attempts != want.attempts:
		s.t.Errorf("%s: task %s is %s after %d attempts, want %d", want.by, f.id, f.state, f.attempts, want.attempts)
	case ran != f.attempts && !want.immediate && !slices.Contains(s.lost, f.id):
		s.t.Errorf("%s: task %s is %s after %d attempts, and %d have run", want.by, f.id, f.state, f.attempts, ran)
	}
}
