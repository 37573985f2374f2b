package workload

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
)

func TestFirstAndLastTaskAtOnceTakeNoNegativeTime(t *testing.T) {
	t.Parallel()
	s := Scenario{drive: func(ctx context.Context, _ *pgxpool.Pool, m *Meter, cfg Config) error {
		m.Done(cfg.Tasks)
		<-ctx.Done()
		return nil
	}}
	for range 50 { // the marks are read in any order
		var m Meter
		r, err := s.measure(t.Context(), nil, &m, Config{Tasks: 2}.orDefaults())
		if err != nil || r.Tasks != 2 || r.Seconds < 0 {
			t.Fatalf("%+v, %v", r, err)
		}
	}
}
