package tasking

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pithworks/pith/db"
)

// Explanation tells why a task is not running (yet).
type Explanation struct {
	ID    uuid.UUID `json:"id"`
	Name  string    `json:"name"`
	State State     `json:"state"`
	// Why is one sentence for people.
	Why string `json:"why"`
	// Places in the queues of its resources, those that it waits for first.
	Places []Place `json:"places,omitempty"`
	// NotBefore is set where the task has no place in the queues yet: it is due then, or is since then.
	NotBefore *time.Time `json:"not_before,omitempty"`
	// Ahead counts the runnable tasks that are claimed before this one, where it is runnable.
	Ahead int `json:"ahead,omitempty"`
	// Workers that are online, and how many of them can run the task.
	WorkersOnline  int `json:"workers_online"`
	WorkersCapable int `json:"workers_capable"`
}

// Place is where a task stands in the queue of one resource.
type Place struct {
	Resource  string `json:"resource"`
	Exclusive bool   `json:"exclusive"`
	// Granted: the task need not wait for this resource.
	Granted bool `json:"granted"`
	// Ahead counts the reservations before its own.
	Ahead int `json:"ahead"`
	// Holder is the first task in the queue, with its state and, if it runs, its worker.
	Holder          uuid.UUID  `json:"holder"`
	HolderName      string     `json:"holder_name"`
	HolderState     State      `json:"holder_state"`
	HolderExclusive bool       `json:"holder_exclusive"`
	Since           *time.Time `json:"since"`
	Worker          string     `json:"worker,omitempty"`
}

// Explain answers "why is this task not running?".
func (c *Client) Explain(ctx context.Context, id uuid.UUID) (Explanation, error) {
	t, err := c.Get(ctx, id)
	if err != nil {
		return Explanation{}, err
	}
	e := Explanation{ID: id, Name: t.Name, State: t.State}
	workers, err := send(ctx, "explain", func(ctx context.Context) ([]db.AppStatusCapabilitiesRow, error) {
		return c.q.AppStatusCapabilities(ctx, c.db)
	})
	if err != nil {
		return e, err
	}
	knowing := 0
	for _, w := range workers {
		var versions map[string]string
		if err := json.Unmarshal(w.Versions, &versions); err != nil {
			return e, fmt.Errorf("explain: versions of workers: %w", err)
		}
		e.WorkersOnline += int(w.Workers)
		if slices.Contains(w.TaskNames, t.Name) {
			knowing += int(w.Workers)
			if VersionsSuffice(versions, t.Versions) {
				e.WorkersCapable += int(w.Workers)
			}
		}
	}
	places, err := send(ctx, "explain", func(ctx context.Context) ([]db.TaskQueuePlacesRow, error) {
		return c.q.TaskQueuePlaces(ctx, c.db, pgUUID(id))
	})
	if err != nil {
		return e, err
	}
	for _, p := range places {
		e.Places = append(e.Places, Place{
			Resource: p.Resource, Exclusive: p.Exclusive, Granted: p.Granted, Ahead: int(p.Ahead),
			Holder: p.Holder.Bytes, HolderName: p.HolderName, HolderState: State(p.HolderState), HolderExclusive: p.HolderExclusive,
			Since: timePtr(p.HolderStartedAt), Worker: p.WorkerName,
		})
	}
	nobody := ""
	switch {
	case e.WorkersOnline == 0:
		nobody = "No worker is online: start one with `pith worker`."
	case knowing == 0:
		nobody = fmt.Sprintf("None of the %d workers online knows the task type %s.", e.WorkersOnline, t.Name)
	case e.WorkersCapable == 0:
		nobody = fmt.Sprintf("%d workers online know %s, but none has the versions that it needs: %s.", knowing, t.Name, versionText(t.Versions))
	}
	switch {
	case t.State.Final():
		e.Why = fmt.Sprintf("It is %s since %s.", t.State, t.FinishedAt.Format(time.RFC3339))
	case t.State == Canceling:
		e.Why = "It is being canceled; its worker confirms that when its function has returned."
	case t.State == Running && t.Holder == nil:
		e.Why = "Its worker has gone missing; the next sweep ends it."
	case t.State == Running:
		e.Why = fmt.Sprintf("It is running since %s.", t.StartedAt.Format(time.RFC3339))
	case t.BlockedOn == nil:
		now, err := send(ctx, "explain", func(ctx context.Context) (pgtype.Timestamptz, error) { return c.q.Now(ctx, c.db) })
		if err != nil {
			return e, err
		}
		e.NotBefore = t.NotBefore
		e.Why = notQueued(t, now.Time)
	case *t.BlockedOn > 0:
		e.Why = waitsFor(e.Places)
	case nobody != "":
		e.Why = nobody
		return e, nil
	default:
		ahead, err := send(ctx, "explain", func(ctx context.Context) (int32, error) {
			return c.q.TaskReadyAhead(ctx, c.db, pgUUID(id))
		})
		if err != nil {
			return e, err
		}
		e.Ahead = int(ahead)
		e.Why = fmt.Sprintf("Nothing blocks it: it waits for a free slot on one of %d workers, with %d runnable tasks before it.", e.WorkersCapable, e.Ahead)
	}
	if t.State == Waiting && nobody != "" {
		e.Why += " " + nobody
	}
	return e, nil
}

// Redact hides the holders for which hide answers true: in their places Holder and what is told of it are zero, and Why tells of
// the resource and how many are ahead alone.
func (e *Explanation) Redact(hide func(holder uuid.UUID) bool) {
	before := waitsFor(e.Places)
	for i := range e.Places {
		if p := &e.Places[i]; hide(p.Holder) {
			*p = Place{Resource: p.Resource, Exclusive: p.Exclusive, Granted: p.Granted, Ahead: p.Ahead}
		}
	}
	if rest, ok := strings.CutPrefix(e.Why, before); ok {
		e.Why = waitsFor(e.Places) + rest
	}
}

// notQueued tells about a task that has no place in the queues at this time.
func notQueued(t Task, now time.Time) string {
	due := t.NotBefore.Format(time.RFC3339)
	switch overdue := t.NotBefore.Before(now); {
	case t.Attempt > 0 && overdue:
		return fmt.Sprintf("Attempt %d of %d failed; the next one is due since %s, and a worker that is not auxiliary queues it.", t.Attempt, t.MaxAttempts, due)
	case t.Attempt > 0:
		return fmt.Sprintf("Attempt %d of %d failed; the next one is not queued before %s.", t.Attempt, t.MaxAttempts, due)
	case overdue:
		return fmt.Sprintf("It is due since %s, and a worker that is not auxiliary queues it.", due)
	}
	return fmt.Sprintf("It is not queued before %s.", due)
}

func waitsFor(places []Place) string {
	var parts []string
	for _, p := range places {
		if p.Granted {
			continue
		}
		mode, by := "shared", fmt.Sprintf(", held by %s %s", p.HolderName, p.Holder)
		if p.Exclusive {
			mode = "exclusive"
		}
		switch {
		case p.Holder == uuid.Nil: // hidden
			by = ""
		case p.Worker != "" && p.Since != nil:
			by = fmt.Sprintf("%s, which runs on %s since %s", by, p.Worker, p.Since.Format(time.RFC3339))
		default:
			by = fmt.Sprintf("%s, which is %s", by, p.HolderState)
		}
		parts = append(parts, fmt.Sprintf("%s (%s, %d ahead)%s", p.Resource, mode, p.Ahead, by))
	}
	return "It waits for " + strings.Join(parts, "; and for ") + "."
}

func versionText(versions map[string]string) string {
	var parts []string
	for label, v := range versions {
		parts = append(parts, label+" >= "+v)
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}
