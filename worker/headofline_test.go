package worker

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/tasking"
)

const (
	busyRepository = "prn:file.repository:busy"
	freeRepository = "prn:file.repository:free"
	backlogKind    = "test.backlog"
	foreignKind    = "test.foreign" // not to be run here
	// foreignPriorities is how many priorities the tasks of foreignKind have.
	foreignPriorities = 100
)

// backlog is a database with many unfinished tasks, seen through one server connection, whose cached
// plans are the ones that are measured.
type backlog struct {
	t     *testing.T
	d     *dbtest.DB
	conn  *pgx.Conn
	q     *db.Queries
	app   pgtype.UUID
	kinds map[string]int32
	// first runs and holds busyRepository, last waits at the end of its queue.
	first, last pgtype.UUID
}

// newBacklog makes one: as many tasks wait for busyRepository as depth says, and as many that this
// worker cannot run are runnable. The connection caches its plans before they are there (early), or
// afterwards.
func newBacklog(t *testing.T, depth int, early bool) *backlog {
	t.Helper()
	ctx := t.Context()
	b := &backlog{t: t, d: dbtest.New(t), q: db.New(), app: pgUUID(uuid.Must(uuid.NewV7()))}
	// Nothing but the test decides when plans are made anew.
	for _, table := range []string{"task", "task_reservation", "resource_lock", "app_status", "task_kind"} {
		if _, err := b.d.Direct.Exec(ctx, "ALTER TABLE "+table+" SET (autovacuum_enabled = off)"); err != nil {
			t.Fatal(err)
		}
	}
	var ids []int32
	if err := b.d.Direct.QueryRow(ctx, "SELECT task_kinds(ARRAY[$1, $2], ARRAY['{}', '{}'], ARRAY[1, 1], ARRAY['0', '0']::interval[])",
		backlogKind, foreignKind).Scan(&ids); err != nil {
		t.Fatal(err)
	}
	b.kinds = map[string]int32{backlogKind: ids[0], foreignKind: ids[1]}
	if _, err := b.q.AppStatusRegister(ctx, b.d.Direct, db.AppStatusRegisterParams{
		ID: b.app, AppType: "worker", Name: "w", Versions: "{}", TaskNames: []string{backlogKind}, TTLSeconds: 600,
	}); err != nil {
		t.Fatal(err)
	}
	var err error
	cfg := b.d.Direct.Config().ConnConfig
	if b.conn, err = pgx.ConnectConfig(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = b.conn.Close(context.WithoutCancel(ctx))
	})
	if early {
		b.warmUp()
	}

	// The first one runs before the others come.
	b.first = b.dispatch(b.d.Direct, backlogKind, busyRepository, 1)[0]
	if claimed := b.claimed(b.turn(b.d.Direct, 1)); !slices.Equal(claimed, []pgtype.UUID{b.first}) {
		t.Fatalf("claimed %v, want the first task", claimed)
	}
	waiting := b.dispatch(b.d.Direct, backlogKind, busyRepository, depth)
	b.last = waiting[len(waiting)-1]
	b.dispatch(b.d.Direct, foreignKind, "", depth)
	if !early {
		if _, err := b.d.Direct.Exec(ctx, "VACUUM ANALYZE"); err != nil {
			t.Fatal(err)
		}
		b.warmUp()
	}
	return b
}

// dispatchParams are those of n tasks of a kind, each of which reserves resource exclusively ("": none).
func (b *backlog) dispatchParams(kind, resource string, n int) db.TaskDispatchParams {
	priority := func(int) int32 { return 0 }
	if kind == foreignKind {
		priority = func(i int) int32 { return int32(i % foreignPriorities) }
	}
	p := db.TaskDispatchParams{
		Busy: "{}", KindNames: []string{kind}, KindVersions: []string{"{}"}, KindAttempts: []int32{1}, KindBackoffs: []string{"0"},
		Reserving: []int32{}, Resources: []string{}, Exclusives: []bool{},
	}
	for i := range n {
		p.IDs = append(p.IDs, pgUUID(uuid.Must(uuid.NewV7())))
		p.Kinds, p.Arguments, p.Cids = append(p.Kinds, 1), append(p.Arguments, "null"), append(p.Cids, "cid")
		p.Groups, p.Priorities = append(p.Groups, pgtype.UUID{}), append(p.Priorities, priority(i))
		p.Immediates, p.Deferreds = append(p.Immediates, false), append(p.Deferreds, true)
		p.NotBefores = append(p.NotBefores, pgtype.Timestamptz{})
		if resource != "" {
			p.Reserving, p.Resources, p.Exclusives = append(p.Reserving, int32(i+1)), append(p.Resources, resource), append(p.Exclusives, true)
		}
	}
	return p
}

func (b *backlog) dispatch(dbtx db.DBTX, kind, resource string, n int) []pgtype.UUID {
	b.t.Helper()
	p := b.dispatchParams(kind, resource, n)
	if _, err := b.q.TaskDispatch(b.t.Context(), dbtx, p); err != nil {
		b.t.Fatal(err)
	}
	return p.IDs
}

// turnParams are those of a turn that ends tasks in their first attempt and wants others.
func (b *backlog) turnParams(wanted int, ends ...pgtype.UUID) db.TaskTurnParams {
	p := db.TaskTurnParams{
		Worker: b.app, Known: []int32{b.kinds[backlogKind], b.kinds[foreignKind]}, Runnable: []int32{b.kinds[backlogKind]},
		Wanted: int32(wanted), Holding: []pgtype.UUID{},
		IDs: append([]pgtype.UUID{}, ends...), Attempts: []int32{}, States: []string{}, Results: []string{}, Errors: []string{},
	}
	for range ends {
		p.Attempts, p.States = append(p.Attempts, 1), append(p.States, string(tasking.Completed))
		p.Results, p.Errors = append(p.Results, ""), append(p.Errors, "")
	}
	return p
}

func (b *backlog) turn(dbtx db.DBTX, wanted int, ends ...pgtype.UUID) []tasking.TurnEvent {
	b.t.Helper()
	rows, err := tasking.Turn(b.t.Context(), dbtx, b.turnParams(wanted, ends...))
	if err != nil {
		b.t.Fatal(err)
	}
	return rows
}

func (b *backlog) claimed(rows []tasking.TurnEvent) (ids []pgtype.UUID) {
	for _, r := range rows {
		if r.Event == "claim" {
			ids = append(ids, r.ID)
		}
	}
	return ids
}

// undone runs something in a transaction on the connection that is rolled back.
func (b *backlog) undone(do func(pgx.Tx)) {
	b.t.Helper()
	tx, err := b.conn.Begin(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	do(tx)
	if err := tx.Rollback(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
}

// warmUp goes through all that is measured later, a few times, on resources of its own.
func (b *backlog) warmUp() {
	b.t.Helper()
	for range 8 {
		b.undone(func(tx pgx.Tx) {
			for range 3 {
				b.dispatch(tx, backlogKind, "prn:file.repository:warm", 1)
			}
			b.dispatch(tx, foreignKind, "", 1)
			running := b.claimed(b.turn(tx, 1))
			for range 2 {
				running = b.claimed(b.turn(tx, 1, running...))
			}
			if len(running) != 1 {
				b.t.Fatalf("claimed %v while warming up", running)
			}
			waiting := b.dispatch(tx, backlogKind, "prn:file.repository:warm", 1)
			if _, err := b.q.TaskCancel(b.t.Context(), tx, waiting); err != nil {
				b.t.Fatal(err)
			}
			if _, err := b.q.TaskEnqueueDue(b.t.Context(), tx, 10); err != nil {
				b.t.Fatal(err)
			}
		})
	}
}

// explaining makes a sqlc query explain itself: it puts EXPLAIN before the statement, and gives the
// caller no rows.
type explaining struct {
	db.DBTX
	plan []byte
}

var errExplained = errors.New("explained")

func (e *explaining) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if err := e.DBTX.QueryRow(ctx, "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) "+sql, args...).Scan(&e.plan); err != nil {
		return nil, err
	}
	return nil, errExplained
}

// buffers measures how many shared buffers a query touches: the least of a few times, each undone, as
// others on the same server may have its caches emptied in between.
func (b *backlog) buffers(query func(db.DBTX) error) int {
	b.t.Helper()
	least := -1
	for range 5 {
		b.undone(func(tx pgx.Tx) {
			e := &explaining{DBTX: tx}
			if err := query(e); !errors.Is(err, errExplained) {
				b.t.Fatalf("explain: %v", err)
			}
			var plans []struct {
				Plan struct {
					Hit  int `json:"Shared Hit Blocks"`
					Read int `json:"Shared Read Blocks"`
				}
			}
			if err := json.Unmarshal(e.plan, &plans); err != nil || len(plans) != 1 {
				b.t.Fatalf("plan %s: %v", e.plan, err)
			}
			if n := plans[0].Plan.Hit + plans[0].Plan.Read; least < 0 || n < least {
				least = n
			}
		})
	}
	return least
}

// spread is how far a step's buffers may differ between a short and a long backlog: an index that is
// a level higher counts in each lookup.
const spread = 20

// steps are what must not depend on the backlog. They are measured in a transaction that is undone.
var steps = []struct {
	name string
	// most is how many buffers it may touch: half as many again as measured. A lookup in an index
	// takes three or four; the tables of 17,000 waiting tasks have more than a thousand.
	most  int
	query func(*backlog, db.DBTX) error
}{
	{"claim of a task for another repository", 50, func(b *backlog, dbtx db.DBTX) error {
		_, err := tasking.Turn(b.t.Context(), dbtx, b.turnParams(1))
		return err
	}},
	{"dispatch onto the busy repository", 50, func(b *backlog, dbtx db.DBTX) error {
		_, err := b.q.TaskDispatch(b.t.Context(), dbtx, b.dispatchParams(backlogKind, busyRepository, 1))
		return err
	}},
	{"dispatch onto a free repository", 50, func(b *backlog, dbtx db.DBTX) error {
		_, err := b.q.TaskDispatch(b.t.Context(), dbtx, b.dispatchParams(backlogKind, "prn:file.repository:third", 1))
		return err
	}},
	{"finish that frees the next one", 120, func(b *backlog, dbtx db.DBTX) error {
		_, err := tasking.Turn(b.t.Context(), dbtx, b.turnParams(0, b.first))
		return err
	}},
	{"finish and claim", 190, func(b *backlog, dbtx db.DBTX) error {
		_, err := tasking.Turn(b.t.Context(), dbtx, b.turnParams(2, b.first))
		return err
	}},
	{"cancel at the end of the queue", 100, func(b *backlog, dbtx db.DBTX) error {
		_, err := b.q.TaskCancel(b.t.Context(), dbtx, []pgtype.UUID{b.last})
		return err
	}},
}

func TestBacklogOfOneRepositoryCostsOthersNothing(t *testing.T) {
	t.Parallel()
	const short, long = 170, 17_000
	for _, tt := range []struct {
		name  string
		early bool
	}{{"plans of the full tables", false}, {"plans of the empty tables", true}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			measured := map[int][]int{}
			for _, depth := range []int{short, long} {
				b := newBacklog(t, depth, tt.early)
				// It runs at once: the next turn claims it, and nothing else.
				free := b.dispatch(b.d.Direct, backlogKind, freeRepository, 1)
				b.undone(func(tx pgx.Tx) {
					if claimed := b.claimed(b.turn(tx, 5)); !slices.Equal(claimed, free) {
						t.Errorf("with %d waiting, the next turn claimed %v, want %v", depth, claimed, free)
					}
				})
				for _, step := range steps {
					measured[depth] = append(measured[depth], b.buffers(func(dbtx db.DBTX) error { return step.query(b, dbtx) }))
				}
				// What was measured did what its name says.
				b.undone(func(tx pgx.Tx) {
					if claimed := b.claimed(b.turn(tx, 2, b.first)); len(claimed) != 2 {
						t.Errorf("with %d waiting, the turn that ends the first one claimed %v, want two", depth, claimed)
					}
				})
			}
			for i, step := range steps {
				few, many := measured[short][i], measured[long][i]
				t.Logf("%s: %d buffers with %d waiting, %d with %d", step.name, few, short, many, long)
				if many >= step.most {
					t.Errorf("%s touches %d buffers with %d waiting, want fewer than %d", step.name, many, long, step.most)
				}
				if many-few > spread {
					t.Errorf("%s touches %d buffers with %d waiting and %d with %d, want about as many", step.name, few, short, many, long)
				}
			}
		})
	}
}

func TestClaimCostsTheSameHoweverManyAreRunnable(t *testing.T) {
	t.Parallel()
	const short, long = 170, 17_000
	ways := []struct {
		name            string
		seen, searching bool
	}{{"looks everywhere", false, true}, {"looks before, between and after what it has seen", true, true}, {"takes where it has seen some", true, false}}
	measured := map[int][]int{}
	for _, depth := range []int{short, long} {
		b := newBacklog(t, short, false)
		b.dispatch(b.d.Direct, backlogKind, "", depth)
		p := b.turnParams(1)
		p.Searching = true
		heads, err := tasking.Turn(t.Context(), b.d.Direct, p)
		if err != nil {
			t.Fatal(err)
		}
		heads = slices.DeleteFunc(heads, func(e tasking.TurnEvent) bool { return e.Event != "head" })
		if len(heads) != 1 {
			t.Fatalf("with %d runnable, the first turn tells of the heads %+v, want one", depth, heads)
		}
		for _, way := range ways {
			p := b.turnParams(1)
			p.Searching = way.searching
			if way.seen {
				p.SeenKinds, p.SeenRanks = []int32{heads[0].Kind}, []int32{heads[0].Attempt}
				p.SeenHeads = []pgtype.Timestamptz{heads[0].CreatedAt}
			}
			b.undone(func(tx pgx.Tx) {
				events, err := tasking.Turn(t.Context(), tx, p)
				if claimed := b.claimed(events); err != nil || len(claimed) != 1 {
					t.Errorf("a turn that %s claimed %v, error %v", way.name, claimed, err)
				}
			})
			measured[depth] = append(measured[depth], b.buffers(func(dbtx db.DBTX) error {
				_, err := tasking.Turn(t.Context(), dbtx, p)
				return err
			}))
		}
	}
	for i, way := range ways {
		few, many := measured[short][i], measured[long][i]
		t.Logf("a turn that %s: %d buffers with %d runnable, %d with %d", way.name, few, short, many, long)
		if many-few > spread || many >= 60 {
			t.Errorf("a turn that %s touches %d buffers with %d runnable and %d with %d, want about as many, below 60", way.name, few, short, many, long)
		}
	}
}

func TestPollThatFindsNothingWritesNothing(t *testing.T) {
	t.Parallel()
	b := newBacklog(t, 1, false)
	for name, wanted := range map[string]int32{"poll": 1, "look": 0} {
		p := b.turnParams(0)
		p.Wanted, p.IDs, p.Attempts, p.States, p.Results, p.Errors = wanted, nil, nil, nil, nil, nil // as a worker sends them
		b.undone(func(tx pgx.Tx) {
			events, err := tasking.Turn(t.Context(), tx, p)
			if err != nil || len(events) > 0 {
				t.Fatalf("%s: %v, error %v", name, events, err)
			}
			var wrote bool
			if err := tx.QueryRow(t.Context(), "SELECT pg_current_xact_id_if_assigned() IS NOT NULL").Scan(&wrote); err != nil || wrote {
				t.Errorf("%s: has written: %t, error %v", name, wrote, err)
			}
		})
	}
}

func TestSearchTakesTheKnownGroupsInAnyOrder(t *testing.T) {
	t.Parallel()
	b := newBacklog(t, 1, false)
	b.dispatch(b.d.Direct, backlogKind, "", 1)
	urgent := b.dispatchParams(foreignKind, "", 1)
	urgent.Priorities[0] = 7
	if _, err := b.q.TaskDispatch(t.Context(), b.d.Direct, urgent); err != nil {
		t.Fatal(err)
	}
	p := b.turnParams(10)
	p.Runnable, p.Searching = p.Known, true
	// As they are claimed: the urgent one first, whose kind is the later one.
	p.SeenKinds, p.SeenRanks = []int32{b.kinds[foreignKind], b.kinds[backlogKind]}, []int32{-7, 0}
	p.SeenHeads = []pgtype.Timestamptz{{Valid: true}, {Valid: true}} // long ago: each head has moved on
	b.undone(func(tx pgx.Tx) {
		events, err := tasking.Turn(t.Context(), tx, p)
		if err != nil {
			t.Fatal(err)
		}
		heads := map[group]int{}
		for _, e := range events {
			if e.Event == "head" {
				heads[group{e.Kind, e.Attempt}]++
			}
		}
		want := map[group]int{{b.kinds[backlogKind], 0}: 1, {b.kinds[foreignKind], -7}: 1, {b.kinds[foreignKind], 0}: 1}
		if diff := cmp.Diff(want, heads, cmp.AllowUnexported(group{})); diff != "" {
			t.Errorf("heads of groups (-want +got):\n%s", diff)
		}
		if n := len(b.claimed(events)); n != 3 {
			t.Errorf("%d claimed, want 3", n)
		}
	})
}

func TestTurnThatFindsTasksLooksForNothingElse(t *testing.T) {
	t.Parallel()
	b := newBacklog(t, 1, false)
	plain := b.dispatch(b.d.Direct, backlogKind, "", 3)
	p := b.turnParams(0)
	p.Wanted, p.Searching = 1, true
	var head tasking.TurnEvent
	b.undone(func(tx pgx.Tx) {
		events, err := tasking.Turn(t.Context(), tx, p)
		i := slices.IndexFunc(events, func(e tasking.TurnEvent) bool { return e.Event == "head" })
		if err != nil || i < 0 {
			t.Fatalf("the first turn tells %+v, error %v, want a head", events, err)
		}
		head = events[i]
	})
	urgent := b.dispatchParams(backlogKind, "", 1)
	urgent.Priorities[0] = 7
	if _, err := b.q.TaskDispatch(t.Context(), b.d.Direct, urgent); err != nil {
		t.Fatal(err)
	}
	p.SeenKinds, p.SeenRanks, p.SeenHeads = []int32{head.Kind}, []int32{head.Attempt}, []pgtype.Timestamptz{head.CreatedAt}
	for _, tt := range []struct {
		name      string
		searching bool
		wanted    int32
		from      time.Time
		want      []pgtype.UUID
	}{
		{"enough where it has seen some", false, 1, head.CreatedAt.Time, plain[:1]},
		{"looks for others", true, 1, head.CreatedAt.Time, urgent.IDs},
		{"fewer than wanted where it has seen some", false, 5, head.CreatedAt.Time, plain},
		{"none where it has seen some", false, 5, head.CreatedAt.Time.Add(time.Hour), urgent.IDs},
	} {
		b.undone(func(tx pgx.Tx) {
			p.Searching, p.Wanted, p.SeenHeads[0].Time = tt.searching, tt.wanted, tt.from
			events, err := tasking.Turn(t.Context(), tx, p)
			if claimed := b.claimed(events); err != nil || !slices.Equal(claimed, tt.want) {
				t.Errorf("%s: claimed %v, error %v, want %v", tt.name, claimed, err, tt.want)
			}
		})
	}
}
