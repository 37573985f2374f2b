package worker

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/pool"
	"github.com/pithworks/pith/tasking"
)

// BenchmarkWorker runs empty tasks that wait already.
func BenchmarkWorker(b *testing.B) {
	for _, slots := range []int{1, 200, 2000} {
		b.Run(fmt.Sprintf("slots=%d", slots), func(b *testing.B) {
			d := dbtest.New(b)
			// Without the tracer of the tests' pool.
			p, err := pool.Open(b.Context(), d.URL, pool.Config{})
			if err != nil {
				b.Fatal(err)
			}
			defer p.Close()
			var ran atomic.Int64
			registry, err := tasking.NewRegistry(tasking.NewType("test.empty", func(context.Context, *tasking.Run, struct{}) (struct{}, error) {
				ran.Add(1)
				return struct{}{}, nil
			}, tasking.TypeConfig{}))
			if err != nil {
				b.Fatal(err)
			}
			c, err := tasking.New(p, tasking.Config{Registry: registry})
			if err != nil {
				b.Fatal(err)
			}
			requests := make([]tasking.Request, 1000)
			for i := range requests {
				requests[i] = tasking.Request{Name: "test.empty"}
			}
			for left := b.N; left > 0; left -= len(requests) {
				if _, err := c.DispatchMany(b.Context(), requests[:min(left, len(requests))]); err != nil {
					b.Fatal(err)
				}
			}
			if _, err := d.Direct.Exec(b.Context(), "ANALYZE"); err != nil {
				b.Fatal(err)
			}
			w, err := New(c, Config{Concurrency: slots, Auxiliary: true, Burst: true})
			if err != nil {
				b.Fatal(err)
			}
			dbtest.Measure(b, func() error { return w.Run(b.Context()) })
			if n := ran.Load(); n != int64(b.N) {
				b.Errorf("%d of %d tasks have run", n, b.N)
			}
		})
	}
}
