package worker

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/resend"
	"github.com/pithworks/pith/tasking"
)

// housekeepEvery is how often the whole fleet keeps house, on average. A missing worker is noticed
// that long after its TTL; a schedule is dispatched that long after its due time.
const housekeepEvery = 2 * time.Second

// batch bounds what one statement of a duty touches.
const batch = 500

// housekeeper does the fleet's duties at intervals that grow with the fleet. Each duty is a
// conditional statement that any number of workers may run at once.
type housekeeper struct {
	w   *Worker
	app *appstatus.App
	log *slog.Logger
}

func newHousekeeper(w *Worker, app *appstatus.App) *housekeeper {
	return &housekeeper{w: w, app: app, log: w.cfg.Log.With("worker", app.Name())}
}

func (h *housekeeper) run(ctx context.Context) {
	failing := false
	for {
		if h.rest(ctx) != nil {
			return
		}
		err := h.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil && !failing {
			h.log.Warn("housekeeping failed", "err", err)
		}
		failing = err != nil
	}
}

// rest sleeps until this worker's next share of the duties: the more workers keep house, the longer,
// and the sooner, should they become fewer meanwhile.
func (h *housekeeper) rest(ctx context.Context) error {
	share := 0.5 + rand.Float64()
	step := min(housekeepEvery, h.app.TTL()/4)
	for slept := time.Duration(0); ; {
		whole := time.Duration(share * float64(step) * float64(max(h.app.Housekeepers(), 1)))
		if slept >= whole {
			return nil
		}
		pause := min(step, whole-slept)
		if err := resend.Sleep(ctx, pause); err != nil {
			return err
		}
		slept += pause
	}
}

// once does every duty once; none waits for another's success.
func (h *housekeeper) once(ctx context.Context) error {
	var errs []error
	for _, duty := range []func(context.Context) error{h.sweep, h.enqueue, h.schedules} {
		ctx, cancel := context.WithTimeout(ctx, turnTimeout)
		errs = append(errs, duty(ctx))
		cancel()
	}
	return errors.Join(errs...)
}

// schedules dispatches what is due.
func (h *housekeeper) schedules(ctx context.Context) error {
	_, err := h.w.client.DispatchDue(ctx)
	return err
}

// enqueue gives tasks whose time has come their place in the queues.
func (h *housekeeper) enqueue(ctx context.Context) error {
	for {
		n, err := db.New().TaskEnqueueDue(ctx, h.w.db, batch)
		if err != nil {
			return err
		}
		if n < batch {
			return nil
		}
	}
}

// sweep deletes missing processes and ends the tasks that they leave behind.
func (h *housekeeper) sweep(ctx context.Context) error {
	gone, err := appstatus.Sweep(ctx, h.w.db)
	if err != nil {
		return err
	}
	for _, app := range gone {
		h.log.Warn("process has gone missing", "missing", app.Name, "app", app.ID, "app_type", app.Type, "last_heartbeat", app.LastHeartbeat)
	}
	missing, err := tasking.EncodeError(&tasking.Error{Reason: tasking.ReasonMissing})
	if err != nil {
		return err
	}
	for {
		var ended []db.TaskAbandonedFinishRow
		err := resend.Do(ctx, turnTimeout, turnTimeout, func(ctx context.Context) (err error) {
			ended, err = db.New().TaskAbandonedFinish(ctx, h.w.db, db.TaskAbandonedFinishParams{Most: batch, Error: missing})
			return err
		})
		if err != nil {
			return err
		}
		for _, t := range ended {
			h.log.Warn("abandoned task ended", "task", t.ID, "state", t.State)
		}
		if len(ended) < batch {
			return nil
		}
	}
}

func sortEndings(es []ending) {
	slices.SortFunc(es, func(a, b ending) int {
		return bytes.Compare(a.claim.ID[:], b.claim.ID[:])
	})
}
