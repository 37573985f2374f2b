package pacing

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// ttl is that of a worker by default: it beats every 10 s.
const ttl = 30 * time.Second

func seeded() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

func sized(n int) func() int { return func() int { return n } }

// old is the poller of a worker that has been there for long.
func old(n int, r *rand.Rand) *Poller {
	p := NewPoller(start.Add(-time.Hour), sized(n), ttl, r)
	p.Found(start)
	return p
}

// sleep is a whole one: until the next poll.
func sleep(p *Poller, now time.Time) time.Duration {
	for sum := time.Duration(0); ; {
		pause, poll := p.Next(now.Add(sum), -1)
		if sum += pause; poll {
			return sum
		}
	}
}

func TestPollsAndBeatsComeAtTheRateWhateverTheFleetsSize(t *testing.T) {
	t.Parallel()
	for _, n := range []int{2, 20, 200} {
		p := old(n, seeded())
		const draws = 4000
		var sum time.Duration
		for range draws {
			sum += sleep(p, start)
		}
		mean := sum.Seconds() / draws
		if rate := float64(n)/mean + beatRate(n, BeatEvery(ttl)); math.Abs(rate/RateBusy-1) > 0.1 {
			t.Errorf("%d workers poll and beat %.1f times per second, should %.0f", n, rate, RateBusy)
		}
	}
	for _, n := range []int{750, 1000, 100_000} {
		p := old(n, seeded())
		for range 1000 {
			if pause, poll := p.Next(start, -1); poll || pause != redraw {
				t.Fatalf("%d workers: pause %s, poll %t though their beats are enough", n, pause, poll)
			}
		}
	}
}

func TestNewcomerDoesNotCountOnTheBeatsOfOthers(t *testing.T) {
	t.Parallel()
	p := NewPoller(start, sized(1000), ttl, seeded())
	for age, polls := range map[time.Duration]bool{0: true, settled - 1: true, settled: false} {
		polled := false
		for range 1000 {
			_, poll := p.Next(start.Add(age), -1)
			polled = polled || poll
		}
		if polled != polls {
			t.Errorf("a newcomer of %s polls: %t", age, polled)
		}
	}
}

func TestBeatsOfALargeFleetArePatientMostly(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]float64{1: 1, 1125: 1, 2250: 0.5, 11_250: 0.1} {
		b := NewBeats(ttl, seeded())
		at := 0
		const beats = 2000
		for range beats {
			if b.Patience(n) == 0 {
				at++
			}
		}
		if got := float64(at) / beats; math.Abs(got-want) > 0.05 {
			t.Errorf("of the beats of %d workers %.2f tell of any task, want %.2f", n, got, want)
		}
	}
}

func TestRateFallsInSilenceAndComesBack(t *testing.T) {
	t.Parallel()
	for n, after := range map[int]time.Duration{1: time.Minute, 10: time.Minute, 1000: 100 * time.Minute} {
		p := old(n, seeded())
		if r := p.rate(start); r != RateBusy {
			t.Errorf("%d workers: %v after a task", n, r)
		}
		if r := p.rate(start.Add(after / 2)); math.Abs(r-(RateBusy+RateIdle)/2) > 0.01 {
			t.Errorf("%d workers: %v half way", n, r)
		}
		for _, idle := range []time.Duration{after, 1000 * after} {
			if r := p.rate(start.Add(idle)); r != RateIdle {
				t.Errorf("%d workers: %v after %s without a task", n, r, idle)
			}
		}
		p.Found(start.Add(after))
		if r := p.rate(start.Add(after)); r != RateBusy {
			t.Errorf("%d workers: %v after a task at last", n, r)
		}
	}
}

func TestSleepIsDrawnAnewInTime(t *testing.T) {
	t.Parallel()
	n := 100_000
	p := old(0, seeded())
	p.fleet = func() int { return n }
	for range 100 {
		if pause, poll := p.Next(start, -1); pause > redraw || !poll && pause != redraw {
			t.Fatalf("pause %s, poll %t", pause, poll)
		}
	}
	n = 1 // the others have gone
	for range 100 {
		if pause, poll := p.Next(start, -1); !poll || pause < floor || pause > time.Second {
			t.Fatalf("pause %s, poll %t in a fleet of one", pause, poll)
		}
	}
}

func TestDueTaskEndsTheSleepAfterItsMoment(t *testing.T) {
	t.Parallel()
	p := old(1000, seeded())
	const due = 300 * time.Millisecond
	early := 0
	for range 1000 {
		pause, _ := p.Next(start, due)
		if pause < due {
			early++ // as any poll
		}
	}
	// Without a task 98 of 100 sleep longer than that.
	if early > 60 {
		t.Errorf("%d of 1000 polled before the moment", early)
	}
	if pause, _ := p.Next(start, 0); pause < floor {
		t.Errorf("pause %s", pause)
	}
}

func TestNewcomersThatDoNotKnowOfEachOtherStayWithinTheBudget(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		before, after int
		most          float64
	}{{0, 1, 1}, {0, 20, 1.5}, {0, 1000, 1.51}, {1, 1000, 0.51}, {25, 1000, 0.2}, {150, 10_000, 0.22}} {
		sum := 0.0
		for k := tt.before + 1; k <= tt.after; k++ {
			p := NewPoller(start, sized(k), ttl, nil)
			sum += p.share(start.Add(5*time.Second)) / float64(k)
		}
		if sum > tt.most+1e-9 {
			t.Errorf("from %d to %d workers the newcomers send %.2f times what all may", tt.before, tt.after, sum)
		}
	}
}

func TestNewcomerTakesItsShareInTime(t *testing.T) {
	t.Parallel()
	n := 10
	p := NewPoller(start, func() int { return n }, ttl, nil)
	if s := p.share(start.Add(settled - 1)); s != 1.0/quiet {
		t.Errorf("share %v while not counted", s)
	}
	n = 12 // counted
	last := 0.0
	for age := time.Duration(0); age <= blend; age += blend / 10 {
		s := p.share(start.Add(age))
		if s < last || s < 1.0/quiet || s > 1 {
			t.Errorf("share %v at %s after %v", s, age, last)
		}
		last = s
	}
	if last != 1 {
		t.Errorf("share %v in the end", last)
	}
	n = 10
	if s := p.share(start.Add(settled)); s != 1 {
		t.Errorf("share %v of a worker that nobody has joined", s)
	}
}

func TestRetryWithoutHurryKeepsItsBound(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 100, 1000, 10_000, 100_000} {
		p := old(n, seeded())
		const draws = 2000
		var calm, hurried time.Duration
		for range draws {
			c, h := p.Retry(start, 20, false), p.Retry(start, 20, true)
			if c < 1250*time.Millisecond || c > retryCeiling+redraw || h > 5*time.Second || h < 1250*time.Millisecond {
				t.Fatalf("%d workers: pauses %s and %s", n, c, h)
			}
			calm, hurried = calm+c, hurried+h
		}
		bound := RateBusy + float64(n)/(0.75*retryCeiling.Seconds())
		if rate := float64(n*draws) / calm.Seconds(); n > 100 && rate > bound {
			t.Errorf("%d workers retry %.0f times per second, should %.0f at most", n, rate, bound)
		}
		if mean := hurried.Seconds() / draws; mean < 2.8 || mean > 3.5 {
			t.Errorf("in a hurry the mean is %.1f s", mean)
		}
	}
}

func TestLooksOfABusyFleetAreBounded(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]time.Duration{
		0: lookFloor, 1: lookFloor, 150: lookFloor, 500: 5 * time.Second, 1000: lookCeiling, 100_000: lookCeiling,
	} {
		if got := Look(n); got != want {
			t.Errorf("%d workers: %s, want %s", n, got, want)
		}
	}
}

func TestFleetKeepsHouseAtTheRateWhateverItsSize(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 20, 1000} {
		var sum time.Duration
		const draws = 2000
		r := seeded()
		for range draws {
			for h := NewHouse(r); ; {
				pause := h.Next(30*time.Second, n)
				if pause == 0 {
					break
				}
				if pause > houseLook {
					t.Fatalf("rests %s", pause)
				}
				sum += pause
			}
		}
		if every := sum.Seconds() / draws / float64(max(n, 1)); math.Abs(every-2) > 0.2 {
			t.Errorf("%d housekeepers keep house every %.2f s", n, every)
		}
	}
	if pause := NewHouse(seeded()).Next(time.Second, 1); pause > 375*time.Millisecond {
		t.Errorf("rests %s with a TTL of a second", pause)
	}
}

func TestFleetDoesOncePerBeatWhatIsToBeDoneOncePerBeat(t *testing.T) {
	t.Parallel()
	for _, ttl := range []time.Duration{time.Second, 30 * time.Second, 120 * time.Second} {
		r, done := seeded(), 0
		const draws = 10_000
		for range draws {
			if OncePerBeat(ttl, r) {
				done++
			}
		}
		if every := float64(houseStep(ttl)) * draws / float64(done); math.Abs(every/float64(BeatEvery(ttl))-1) > 0.1 {
			t.Errorf("ttl %s: every %s, beats come every %s", ttl, time.Duration(every), BeatEvery(ttl))
		}
	}
}

func TestHousekeeperGoesSoonWhenItIsLeftAlone(t *testing.T) {
	t.Parallel()
	h := NewHouse(seeded())
	if pause := h.Next(30*time.Second, 1000); pause != houseLook {
		t.Fatalf("rests %s", pause)
	}
	if pause := h.Next(30*time.Second, 1); pause != 0 {
		t.Errorf("still rests %s", pause)
	}
}

func TestBeatsComeThreeTimesPerTTLAndApart(t *testing.T) {
	t.Parallel()
	const ttl = 30 * time.Second
	r := seeded()
	within := func(what string, b *Beats, low, high time.Duration) {
		t.Helper()
		if pause := b.Next(100); pause < low || pause > high {
			t.Errorf("%s: %s, want %s to %s", what, pause, low, high)
		}
	}
	var firsts []time.Duration
	for range 200 {
		b := NewBeats(ttl, r)
		firsts = append(firsts, b.Next(1000))
		b.Arrived()
		within("then", b, 9*time.Second, 11*time.Second)
		for n := 1; n <= 9; n++ {
			b.Failed()
			within("after failures", b, 12*time.Millisecond, 5*time.Second)
		}
		if !b.Failing() {
			t.Error("the beat after an outage is not one of many")
		}
		b.Arrived()
		if b.Failing() {
			t.Error("the next one is, too")
		}
		within("after an outage", b, time.Second, 10*time.Second)
		within("later", b, 9*time.Second, 11*time.Second)
	}
	for _, long := range []time.Duration{time.Minute, time.Hour} {
		b := NewBeats(long, r)
		b.Next(1)
		within("with a long TTL", b, 9*time.Second, 11*time.Second)
	}
	slices.Sort(firsts)
	if firsts[0] < time.Second || firsts[0] > 2*time.Second || firsts[199] > 10*time.Second || firsts[199] < 9*time.Second {
		t.Errorf("the first beats come from %s to %s", firsts[0], firsts[199])
	}
}

func TestLargeFleetRepeatsFailedBeatsSlowly(t *testing.T) {
	t.Parallel()
	b := NewBeats(30*time.Second, seeded())
	b.Failed()
	for range 100 {
		if pause := b.Next(20_000); pause < 2500*time.Millisecond || pause > 10*time.Second {
			t.Fatalf("pause %s", pause)
		}
	}
}

func TestHalfOfTheNewcomersHeedABeatAndAllOthersDo(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		n    int
		age  time.Duration
		want float64
	}{{1, 0, 1}, {100, 0, 0.5}, {100, settled - 1, 0.5}, {100, settled, 1}} {
		p := NewPoller(start, sized(tt.n), ttl, seeded())
		heeded := 0
		const beats = 2000
		for range beats {
			if p.Heed(start.Add(tt.age)) {
				heeded++
			}
		}
		if got := float64(heeded) / beats; math.Abs(got-tt.want) > 0.05 {
			t.Errorf("one of %d, %s old, heeds %.2f of the beats, want %.2f", tt.n, tt.age, got, tt.want)
		}
	}
}
