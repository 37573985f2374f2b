package simulate

import "time"

// often is the stream of tasks that most experiments have: one every 50 ms, too short to count.
const often = 50 * time.Millisecond

func stream(from, until time.Duration) Stream {
	return Stream{At: from, Every: often, Count: int((until - from) / often), Takes: time.Millisecond}
}

// Steady is a fleet that gets a task every 50 ms, as it has for long.
func Steady(seed uint64, workers int, until time.Duration) Config {
	return Config{Seed: seed, Settled: workers, Came: often, Until: until, Tasks: []Stream{stream(0, until-time.Second)}}
}

// Idle is a fleet in which nothing comes, as before.
func Idle(seed uint64, workers int, silence, until time.Duration) Config {
	return Config{Seed: seed, Settled: workers, Silence: silence, Came: often, Until: until}
}

// Wakeup is a fleet that gets one task after a minute of silence.
func Wakeup(seed uint64, workers int) Config {
	c := Idle(seed, workers, time.Minute, 3*time.Second)
	c.Tasks = []Stream{{At: time.Second, Count: 1}}
	return c
}

// When the workers of ScaleUp start, and how many.
var scaleUp = []Join{{At: 10 * time.Second, Over: 2 * time.Second, Workers: 125}, {At: 14 * time.Second, Over: 3 * time.Second, Workers: 850}}

// ScaleUp is a fleet that grows from 25 to 150 to 1000 workers within seconds, under a task every 50 ms and,
// from second 9, a backlog of tasks of 5 seconds each.
func ScaleUp(seed uint64, backlog int) Config {
	c := Steady(seed, 25, time.Minute)
	c.Joins = scaleUp
	if backlog > 0 {
		c.Tasks = append(c.Tasks, Stream{At: 9 * time.Second, Count: backlog, Takes: 5 * time.Second})
	}
	return c
}

// ColdStart is a fleet that starts within seconds, where there was none.
func ColdStart(seed uint64, workers int) Config {
	c := Steady(seed, 0, time.Minute)
	c.Joins = []Join{{Over: 5 * time.Second, Workers: workers}}
	return c
}

// Restart is a fleet that is killed in second 10, and started anew right after.
func Restart(seed uint64, workers int) Config {
	c := Steady(seed, workers, time.Minute)
	c.Deaths = []Death{{At: 10 * time.Second, Workers: workers}}
	c.Joins = []Join{{At: 11 * time.Second, Over: 5 * time.Second, Workers: workers}}
	return c
}

// ScaleDown is a fleet of which nine of ten are killed in second 10.
func ScaleDown(seed uint64, workers int) Config {
	c := Steady(seed, workers, 90*time.Second)
	c.Deaths = []Death{{At: 10 * time.Second, Workers: workers * 9 / 10}}
	return c
}

// Down is a database that is away from second 10 on, for a time.
func Down(seed uint64, workers int, length time.Duration) Config {
	c := Steady(seed, workers, 10*time.Second+length+40*time.Second)
	c.Outages = []Outage{{At: 10 * time.Second, For: length}}
	return c
}

// Burst is an idle fleet that gets as many tasks as it has workers at once; each takes a minute.
func Burst(seed uint64, workers int, until time.Duration) Config {
	c := Idle(seed, workers, time.Second, until)
	c.Tasks = []Stream{{At: time.Second, Count: workers, Takes: time.Minute}}
	return c
}

// MostlyBusy is a fleet of which all but one of so many run long tasks; the others get one every second.
func MostlyBusy(seed uint64, workers, oneOf int) Config {
	c := Idle(seed, workers, time.Second, 20*time.Minute)
	busy := workers - workers/oneOf
	c.Tasks = []Stream{
		{At: time.Second, Count: busy, Takes: time.Hour},
		{At: 10 * time.Minute, Every: time.Second, Count: 300, Takes: time.Millisecond},
	}
	return c
}
