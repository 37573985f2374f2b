package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/tasking"
)

const (
	startWorker      = "start one: `pith worker`"
	startHousekeeper = "start a worker without --auxiliary: `pith worker`"
)

func (x *examination) lookAtWorkers(ctx context.Context, f *findings) error {
	fleet, err := x.q.DoctorFleet(ctx, x.pool)
	if err != nil {
		return err
	}
	due := seconds(fleet.DueSeconds) >= x.limits.late || seconds(fleet.SchedulesSeconds) >= x.limits.late
	switch {
	case fleet.Workers == 0:
		f.add(Note, startWorker, "no worker is online")
	case fleet.Housekeepers == 0:
		f.add(Warning, startHousekeeper, "all %d workers online are auxiliary: nobody sweeps the missing, queues what is due, or dispatches schedules", fleet.Workers)
	}
	if due {
		remedy := startHousekeeper
		if fleet.Housekeepers > 0 {
			remedy = "see the logs of the workers for what keeps their housekeeping from it"
		}
		f.add(Warning, remedy, "%d tasks and %d schedules are due, for %s, and not queued",
			fleet.Due, fleet.Schedules, round(seconds(max(fleet.DueSeconds, fleet.SchedulesSeconds))))
	}
	f.ok("%d workers online, %d of them keep house", fleet.Workers, fleet.Housekeepers)
	return nil
}

func (x *examination) lookAtMissing(ctx context.Context, f *findings) error {
	fleet, err := x.q.DoctorFleet(ctx, x.pool)
	if err != nil {
		return err
	}
	missing, err := x.q.DoctorMissing(ctx, x.pool)
	if err != nil {
		return err
	}
	for _, a := range missing[:min(len(missing), listed)] {
		text := fmt.Sprintf("%s %s is missing since %s and holds %d tasks", a.AppType, a.Name, round(seconds(a.OverdueSeconds)), a.Holding)
		switch {
		case fleet.Housekeepers == 0:
			f.add(Warning, startHousekeeper, "%s; nobody is online to sweep it", text)
		case seconds(a.OverdueSeconds) > max(seconds(a.TTLSeconds), x.limits.late):
			f.add(Warning, "see the logs of the workers for what keeps their housekeeping from it", "%s; it should have been swept", text)
		default:
			f.add(Note, "", "%s; the next sweep frees them", text)
		}
	}
	if more := missing[min(len(missing), listed):]; len(more) > 0 {
		holding := int64(0)
		for _, a := range more {
			holding += a.Holding
		}
		severity := Note
		if fleet.Housekeepers == 0 {
			severity = Warning
		}
		f.add(severity, "", "%d more processes are missing and hold %d tasks", len(more), holding)
	}
	if fleet.Abandoned > 0 {
		if fleet.Housekeepers == 0 {
			f.add(Warning, startHousekeeper, "%d tasks were left behind by processes that went missing, and nobody is online to end them", fleet.Abandoned)
		} else {
			f.add(Note, "", "%d tasks were left behind by processes that went missing; the next sweep ends them", fleet.Abandoned)
		}
	}
	f.ok("nobody is missing")
	return nil
}

func (x *examination) lookAtUnrunnable(ctx context.Context, f *findings) error {
	kinds, err := x.q.DoctorKinds(ctx, x.pool)
	if err != nil {
		return err
	}
	workers, err := x.q.AppStatusCapabilities(ctx, x.pool)
	if err != nil {
		return err
	}
	stuck, runnable, err := unrunnable(kinds, workers)
	if err != nil {
		return err
	}
	if len(workers) == 0 && len(stuck) > 0 {
		tasks := int64(0)
		for _, s := range stuck {
			tasks += s.tasks
		}
		f.add(Warning, startWorker, "%d tasks of %d types wait, the oldest for %s, and no worker is online", tasks, len(stuck), round(seconds(stuck[0].oldest)))
		return nil
	}
	for _, s := range stuck[:min(len(stuck), shown)] {
		why, remedy := "no worker online knows the type", "start workers of a program that has the type, or cancel the tasks: pith task list --name "+s.name
		if s.versions != "" {
			why, remedy = "no worker online that knows the type has "+s.versions, "start workers of a newer release"
		}
		f.add(Warning, remedy, "%s: %d waiting, the oldest for %s: %s", s.name, s.tasks, round(seconds(s.oldest)), why)
	}
	if more := len(stuck) - shown; more > 0 {
		f.add(Warning, "", "%d more types of tasks wait that no worker online can run", more)
	}
	if runnable > 0 {
		f.ok("%d tasks wait for a free slot only", runnable)
	}
	f.ok("nothing waits for a worker")
	return nil
}

// stuckKind is a kind that nobody online can run.
type stuckKind struct {
	name, versions string // versions: those that are lacking, empty if the type is not known at all
	tasks          int64
	oldest         float64 // seconds
}

// unrunnable tells which kinds of waiting tasks no worker can run, and how many tasks some worker can.
func unrunnable(kinds []db.DoctorKindsRow, workers []db.AppStatusCapabilitiesRow) (stuck []stuckKind, runnable int64, err error) {
	have := make([]map[string]string, len(workers))
	for i, w := range workers {
		if err := json.Unmarshal(w.Versions, &have[i]); err != nil {
			return nil, 0, fmt.Errorf("versions of workers: %w", err)
		}
	}
	for _, k := range kinds {
		var needs map[string]string
		if err := json.Unmarshal(k.Versions, &needs); err != nil {
			return nil, 0, fmt.Errorf("versions of %s: %w", k.Name, err)
		}
		known, able := false, false
		for i, w := range workers {
			if slices.Contains(w.TaskNames, k.Name) {
				known = true
				able = able || tasking.VersionsSuffice(have[i], needs)
			}
		}
		if able {
			runnable += k.Tasks
			continue
		}
		s := stuckKind{name: k.Name, tasks: k.Tasks, oldest: k.OldestSeconds}
		if known {
			var parts []string
			for _, label := range slices.Sorted(maps.Keys(needs)) {
				parts = append(parts, label+" >= "+needs[label])
			}
			s.versions = strings.Join(parts, ", ")
		}
		stuck = append(stuck, s)
	}
	return stuck, runnable, nil
}
