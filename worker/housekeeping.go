package worker

import (
	"bytes"
	"context"
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
		every := min(housekeepEvery, h.app.TTL()/4) * time.Duration(h.app.Online())
		if resend.Sleep(ctx, every/2+rand.N(every)) != nil {
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

// once does every duty once.
func (h *housekeeper) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, turnTimeout)
	defer cancel()
	if err := h.sweep(ctx); err != nil {
		return err
	}
	for {
		n, err := db.New().TaskEnqueueDue(ctx, h.w.db, batch)
		if err != nil {
			return err
		}
		if n < batch {
			break
		}
	}
	_, err := h.w.client.DispatchDue(ctx)
	return err
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
		ended, err := db.New().TaskAbandonedFinish(ctx, h.w.db, db.TaskAbandonedFinishParams{Most: batch, Error: missing})
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
