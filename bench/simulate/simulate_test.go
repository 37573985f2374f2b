package simulate

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/pithworks/pith/internal/pacing"
)

const (
	second = time.Second
	// spike is how far above its mean a budget may be exceeded in any second.
	spike = 1.5
)

var sizes = []int{1, 10, 100, 1000, 10_000}

func TestSameSeedSameResult(t *testing.T) {
	t.Parallel()
	run := func(seed uint64) Result { return Run(ScaleUp(seed, 500)) }
	if !reflect.DeepEqual(run(7), run(7)) {
		t.Error("two runs differ")
	}
	if reflect.DeepEqual(run(7), run(8)) {
		t.Error("the seed does not matter")
	}
}

func TestStatementRateKeepsTheBudgetAtEverySize(t *testing.T) {
	t.Parallel()
	for _, n := range sizes {
		until := time.Minute
		for name, c := range map[string]Config{"busy": Steady(1, n, until), "idle": Idle(1, n, time.Minute, until)} {
			r := Run(c)
			if polls := r.Per(0, until, Poll); polls > pacing.RateBusy*1.05 {
				t.Errorf("%d workers, %s: %.1f polls/s", n, name, polls)
			}
			if peak := r.Peak(second, 0, until, Poll); peak > spike*pacing.RateBusy {
				t.Errorf("%d workers, %s: %.0f polls in a second", n, name, peak)
			}
			if beats := r.Per(0, until, Beat); beats > float64(n)/10*1.1+1 {
				t.Errorf("%d workers, %s: %.1f beats/s", n, name, beats)
			}
			if house := r.Per(0, until, House); house > 6 {
				t.Errorf("%d workers, %s: %.1f statements/s of housekeeping", n, name, house)
			}
			if r.Lost > 0 {
				t.Errorf("%d workers, %s: %d lost", n, name, r.Lost)
			}
		}
	}
}

func TestPickUpDoesNotDependOnTheSize(t *testing.T) {
	t.Parallel()
	for _, n := range sizes {
		c := Steady(2, n, 3*time.Minute)
		r := Run(c)
		p50, tasks := r.Waited(50, 0, c.Until)
		p99, _ := r.Waited(99, 0, c.Until)
		if p50 > 15*time.Millisecond || p99 > 80*time.Millisecond || r.Left > 0 || tasks != c.Tasks[0].Count {
			t.Errorf("%d workers: p50 %s, p99 %s of %d tasks, %d left", n, p50, p99, tasks, r.Left)
		}
	}
}

func TestFirstTaskAfterAMinuteIsPickedUpSoon(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 20, 200, 1000} {
		var waits []time.Duration
		for seed := range uint64(100) {
			for _, w := range Run(Wakeup(seed, n)).Waits {
				waits = append(waits, w.Waited)
			}
		}
		slices.Sort(waits)
		if len(waits) != 100 || waits[98] > 300*time.Millisecond {
			t.Errorf("%d workers: %d of 100 picked up, the 99th after %s", n, len(waits), waits[len(waits)-1])
		}
	}
}

func TestScaleUpNeitherSpikesNorStarves(t *testing.T) {
	t.Parallel()
	for seed := range uint64(5) {
		c := ScaleUp(seed, 0)
		r := Run(c)
		if peak := r.Peak(second, 0, c.Until, Poll); peak > spike*pacing.RateBusy {
			t.Errorf("seed %d: %.0f polls in a second", seed, peak)
		}
		budget := pacing.RateBusy + 1000/10
		if peak := r.Peak(second, 0, c.Until, Poll, Look, Beat, House); peak > spike*budget {
			t.Errorf("seed %d: %.0f statements in a second, registrations apart", seed, peak)
		}
		if longest, _ := r.Waited(100, 0, c.Until); longest > second || r.Lost > 0 || r.Left > 0 {
			t.Errorf("seed %d: waits of %s, %d lost, %d left", seed, longest, r.Lost, r.Left)
		}
	}
}

func TestBacklogDoesNotMakeNewWorkersSpike(t *testing.T) {
	t.Parallel()
	c := ScaleUp(1, 2000)
	r := Run(c)
	if peak := r.Peak(second, 0, c.Until, Poll); peak > spike*pacing.RateBusy {
		t.Errorf("%.0f polls in a second", peak)
	}
	if r.Lost > 0 || r.Left > 0 {
		t.Errorf("%d lost, %d left", r.Lost, r.Left)
	}
}

func TestFleetThatStartsFromNothingKeepsTheBudget(t *testing.T) {
	t.Parallel()
	for _, n := range []int{20, 1000} {
		c := ColdStart(1, n)
		r := Run(c)
		if peak := r.Peak(second, 0, c.Until, Poll); peak > 2*pacing.RateBusy {
			t.Errorf("%d workers: %.0f polls in a second", n, peak)
		}
		if longest, _ := r.Waited(100, 0, c.Until); longest > second {
			t.Errorf("%d workers: a wait of %s", n, longest)
		}
	}
}

func TestOutageEndsWithoutAHerd(t *testing.T) {
	t.Parallel()
	for _, n := range []int{20, 1000, 10_000} {
		for _, length := range []time.Duration{10 * second, time.Minute} {
			c := Down(1, n, length)
			r := Run(c)
			end := 10*second + length
			if peak := r.Peak(second, end, c.Until, Poll); peak > spike*pacing.RateBusy*1.2 {
				t.Errorf("%d workers, %s: %.0f polls in a second after it", n, length, peak)
			}
			// All retries are spread over resend.Backoff's 1.25 to 5 s; of few workers more may meet.
			if peak := r.Peak(second, end, c.Until, All...); peak > 0.6*float64(n)+10+spike*pacing.RateBusy {
				t.Errorf("%d workers, %s: %.0f statements in a second after it", n, length, peak)
			}
			if length < 30*second && r.Lost > 0 {
				t.Errorf("%d workers, %s: %d lost", n, length, r.Lost)
			}
			if p99, tasks := r.Waited(99, end+15*second, c.Until); p99 > 200*time.Millisecond || tasks == 0 {
				t.Errorf("%d workers, %s: later p99 %s of %d tasks", n, length, p99, tasks)
			}
		}
	}
}

// A beat may be 11 s old when an outage begins, and is repeated 5 s after its end at the latest.
func TestOutageCostsLeasesByItsLength(t *testing.T) {
	t.Parallel()
	for _, n := range []int{20, 1000, 10_000} {
		if r := Run(Down(1, n, TTL*9/10-16*second)); r.Lost > 0 {
			t.Errorf("%d workers: a short one costs %d leases", n, r.Lost)
		}
		if r := Run(Down(1, n, TTL*9/10)); r.Lost != n {
			t.Errorf("%d workers: one as long as leases are good for costs %d", n, r.Lost)
		}
	}
}

func TestNoWorkerIsForgotten(t *testing.T) {
	t.Parallel()
	c := Steady(3, 20, 5*time.Minute)
	r := Run(c)
	most, least := slices.Max(r.Claimed), slices.Min(r.Claimed)
	if least == 0 || most > 3*least {
		t.Errorf("the workers have run from %d to %d tasks", least, most)
	}
}

func TestBusyFleetLooksWithinItsBudget(t *testing.T) {
	t.Parallel()
	c := Idle(1, 1000, second, 3*time.Minute)
	c.Tasks = []Stream{{At: second, Count: 1000, Takes: time.Hour}}
	r := Run(c)
	if looks := r.Peak(10*second, 0, c.Until, Look); looks > 130 {
		t.Errorf("%.0f looks per second", looks)
	}
}

func TestFleetThatLosesMostOfItsWorkersRecovers(t *testing.T) {
	t.Parallel()
	c := ScaleDown(1, 1000)
	r := Run(c)
	if longest, _ := r.Waited(100, 0, c.Until); longest > 2*second {
		t.Errorf("a wait of %s", longest)
	}
	if p99, _ := r.Waited(99, 75*second, c.Until); p99 > 80*time.Millisecond*3/2 {
		t.Errorf("p99 %s in the end", p99)
	}
}
