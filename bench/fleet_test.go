package main

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/resend"
	"github.com/pithworks/pith/worker"
)

func TestPeakIsTheBusiestSecond(t *testing.T) {
	t.Parallel()
	counts := make([]int, 40)
	counts[3], counts[12], counts[14], counts[30] = 50, 20, 15, 30
	ended := make([]int, 15)
	ended[14] = 10
	for _, tt := range []struct {
		from  time.Duration
		plus  [][]int
		minus [][]int
		want  float64
	}{
		{0, [][]int{counts}, nil, 70}, // 3 and 12 are within ten tenths
		{500 * time.Millisecond, [][]int{counts}, nil, 35},
		{500 * time.Millisecond, [][]int{counts}, [][]int{ended}, 30},
		{0, [][]int{counts, counts[:13]}, nil, 140},
		{time.Hour, [][]int{counts}, nil, 0},
		{0, nil, nil, 0},
	} {
		if got := peak(tt.from, tt.plus, tt.minus...); got != tt.want {
			t.Errorf("from %s: %v, want %v", tt.from, got, tt.want)
		}
	}
}

func TestTallyCountsEachKindUntilItIsStopped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		y := &tally{start: time.Now()}
		send := func(text string) { y.TraceQueryStart(t.Context(), nil, pgx.TraceQueryStartData{SQL: text}) }
		send(db.TaskTurn)
		_ = resend.Sleep(t.Context(), 250*time.Millisecond)
		send(db.TaskTurn)
		send(db.AppStatusBeat)
		send(db.TaskRead)
		y.stop()
		send(db.AppStatusRegister)
		if got := y.sent[0]; len(got) != 3 || got[0] != 1 || got[2] != 1 {
			t.Errorf("turns %v", got)
		}
		if b, r, o := peak(0, [][]int{y.sent[1]}), peak(0, [][]int{y.sent[2]}), peak(0, [][]int{y.other}); b != 1 || r != 0 || o != 1 {
			t.Errorf("%v beats, %v registrations, %v others", b, r, o)
		}
	})
}

func TestWorkersThatWereMissedAreCountedOnce(t *testing.T) {
	t.Parallel()
	const swept, lost = worker.MessageSwept, worker.MessageLost
	var m missing
	log := slog.New(&m)
	log.Warn("turn failed")
	for range 2 { // both tell of the same two
		log.Warn(lost)
		log.With("worker", "x").Warn(swept)
	}
	log.Info(swept)
	if n := m.count(); n != 2 {
		t.Errorf("%d, want 2", n)
	}
}

func TestEveryLetsACallFinishAndPassesItsError(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		err := every(ctx, time.Second, func(ctx context.Context) error {
			if calls++; calls == 3 {
				cancel()
			}
			return ctx.Err()
		})
		if err != nil || calls != 3 {
			t.Errorf("%d calls, %v", calls, err)
		}
		broken := errors.New("broken")
		if err := every(t.Context(), time.Second, func(context.Context) error { return broken }); !errors.Is(err, broken) {
			t.Errorf("got %v", err)
		}
	})
}

func TestLongWaitsAreShownInSeconds(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{11234 * time.Microsecond: "11.2 ms", 999 * time.Millisecond: "999 ms", 2500 * time.Millisecond: "2.50 s"} {
		if got := shortDuration(d); got != want {
			t.Errorf("%s became %q, want %q", d, got, want)
		}
	}
}

func TestNobodyMissedMustHoldInEveryRun(t *testing.T) {
	t.Parallel()
	lines := func(missing ...float64) []Line {
		l := Line{Contestant: pith}
		for _, n := range missing {
			l.Samples = append(l.Samples, Sample{More: map[string]float64{missed: n}})
		}
		return []Line{l}
	}
	if v := noneMissed(pith).judge(lines(0, 0, 0)); !v.Met || !strings.Contains(v.Target, "nobody") {
		t.Errorf("%+v", v)
	}
	if v := noneMissed(pith).judge(lines(0, 0, 1)); v.Met {
		t.Errorf("one was missed: %+v", v)
	}
}

func TestContestsBoundTheirRuns(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ most, asked, want int }{{0, 5, 5}, {3, 5, 3}, {3, 1, 1}} {
		if got := (contest{most: tt.most}).runs(tt.asked); got != tt.want {
			t.Errorf("at most %d of %d: %d", tt.most, tt.asked, got)
		}
	}
}

func TestSimulatorIsComparedWithEveryFleet(t *testing.T) {
	t.Parallel()
	r := measured(t, testConfig(t, "-scenario", "check"))[0]
	if strings.Contains(r.Text, "needs PgBouncer") {
		t.Skip(r.Text)
	}
	var rows [][]string
	for line := range strings.Lines(r.Text) {
		if cells := strings.Split(strings.Trim(strings.TrimSpace(line), "| "), " | "); len(cells) == 10 {
			rows = append(rows, cells)
		}
	}
	if len(rows) != 3 || rows[1][0] != "10" || rows[2][0] != "20" {
		t.Fatalf("%d rows in\n%s", len(rows), r.Text)
	}
	for _, cells := range rows[1:] {
		for i, cell := range cells[:7] { // beats are rare
			if v, err := strconv.ParseFloat(cell, 64); err != nil || v <= 0 {
				t.Errorf("%s workers: %q in column %d", cells[0], cell, i)
			}
		}
	}
	for _, v := range r.Versions {
		if strings.HasPrefix(v, "River") {
			t.Errorf("%s takes no part", v)
		}
	}
}

func TestSimulationsTellOfEverySizeAndEvent(t *testing.T) {
	t.Parallel()
	b := &bench{pace: pace{quick: true}, progress: &strings.Builder{}, plots: t.TempDir()}
	text, err := simulations(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| 1,000 |", "| 1000 tasks for 1000 idle workers |", "simulate-pickup.svg"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}
