package api

import (
	"context"
	"encoding/json"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pithworks/pith/db"
)

type workerReply struct {
	head
	Name          string            `json:"name"`
	LastHeartbeat Time              `json:"last_heartbeat"`
	Versions      map[string]string `json:"versions"`
	CurrentTask   *string           `json:"current_task" doc:"The href of the task that it runs, the latest if several."`
}

// workers reads workers in the order of their ids.
func (r *Request) workers(ctx context.Context, keys []string) ([]workerReply, error) {
	s := r.server
	rows, err := query(ctx, func(ctx context.Context) ([]db.AppStatusReadRow, error) {
		return s.q.AppStatusRead(ctx, s.db, db.AppStatusReadParams{IDs: pgUUIDs(keys), AppType: "worker"})
	})
	if err != nil {
		return nil, err
	}
	found := map[string]workerReply{}
	for _, row := range rows {
		key := uuid.UUID(row.ID.Bytes).String()
		w := workerReply{head: r.headOf(s.own.workers, key, row.CreatedAt.Time, row.LastHeartbeat.Time), Name: row.Name, LastHeartbeat: Time{row.LastHeartbeat.Time}}
		if err := json.Unmarshal(row.Versions, &w.Versions); err != nil {
			return nil, err
		}
		if row.CurrentTask.Valid {
			id := uuid.UUID(row.CurrentTask.Bytes)
			w.CurrentTask = r.hrefOrNull(s.own.tasks, &id)
		}
		found[key] = w
	}
	return inOrder(keys, found), nil
}

func (s *Server) listWorkers(ctx context.Context, r *Request) (Reply, error) {
	found, err := r.Page(ctx, s.own.workerList)
	if err != nil {
		return Reply{}, err
	}
	list, err := r.workers(ctx, found.Keys)
	if err != nil {
		return Reply{}, err
	}
	return OK(NewPage(found, list))
}

func (s *Server) readWorker(ctx context.Context, r *Request) (Reply, error) {
	list, err := r.workers(ctx, []string{r.ID})
	switch {
	case err != nil:
		return Reply{}, err
	case len(list) == 0:
		return Reply{}, NotFound("AppStatus")
	}
	return OK(list[0])
}

// inOrder are the values of these keys, as far as they are there.
func inOrder[T any](keys []string, found map[string]T) []T {
	list := make([]T, 0, len(keys))
	for _, key := range keys {
		if v, ok := found[key]; ok {
			list = append(list, v)
		}
	}
	return list
}

func pgUUID(id uuid.UUID) pgtype.UUID { return pgtype.UUID{Bytes: id, Valid: true} }

func pgUUIDs(keys []string) []pgtype.UUID {
	out := make([]pgtype.UUID, len(keys))
	for i, key := range keys {
		out[i] = pgUUID(uuid.MustParse(key))
	}
	return out
}

func pgTime(t pgtype.Timestamptz) *Time {
	if !t.Valid {
		return nil
	}
	return &Time{t.Time}
}
