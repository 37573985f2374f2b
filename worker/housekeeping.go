package worker

import (
	"context"
	"errors"
	"log/slog"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/pacing"
	"github.com/pithworks/pith/internal/resend"
	"github.com/pithworks/pith/tasking"
)

// batch bounds what one statement of a duty touches.
const batch = 500

// housekeeper does the fleet's duties at intervals that grow with the fleet. Each duty is a
// conditional statement that any number of workers may run at once.
type housekeeper struct {
	w      *Worker
	app    *appstatus.App
	gauges *gauges // nil: nobody asks for metrics
	log    *slog.Logger
}

func newHousekeeper(w *Worker, app *appstatus.App) *housekeeper {
	return &housekeeper{w: w, app: app, gauges: w.gauges, log: w.cfg.Log.With("worker", app.Name())}
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

// rest sleeps until this worker's next share of the duties.
func (h *housekeeper) rest(ctx context.Context) error {
	for house := pacing.NewHouse(nil); ; {
		pause := house.Next(h.app.TTL(), h.app.Housekeepers())
		if pause == 0 {
			return nil
		}
		if err := resend.Sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// once does every duty once; none waits for another's success.
func (h *housekeeper) once(ctx context.Context) error {
	var errs []error
	for _, duty := range []func(context.Context) error{h.sweep, h.enqueue, h.schedules, h.measure} {
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

// measure records the gauges about once per beat in the whole fleet: the queue they tell of is the fleet's.
func (h *housekeeper) measure(ctx context.Context) error {
	if h.gauges == nil || !pacing.OncePerBeat(h.app.TTL(), nil) {
		return nil
	}
	return h.gauges.record(ctx, h.w.db)
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
		h.log.Warn(MessageSwept, "missing", app.Name, "app", app.ID, "app_type", app.Type, "last_heartbeat", app.LastHeartbeat)
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
