package tasking_test

import (
	"sync"
	"testing"

	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/pool"
	"github.com/pithworks/pith/tasking"
)

// BenchmarkDispatch dispatches tasks, by 16 goroutines one at a time, and by one goroutine a thousand
// in a statement.
func BenchmarkDispatch(b *testing.B) {
	request := tasking.Request{Name: "test.empty", Args: map[string]int{"chunk": 1}}
	b.Run("single", func(b *testing.B) {
		measure(b, func(c *tasking.Client) error {
			const dispatchers = 16
			var wg sync.WaitGroup
			errs := make([]error, dispatchers)
			for i := range dispatchers {
				wg.Go(func() {
					for n := i; n < b.N && errs[i] == nil; n += dispatchers {
						_, errs[i] = c.Dispatch(b.Context(), request)
					}
				})
			}
			wg.Wait()
			for _, err := range errs {
				if err != nil {
					return err
				}
			}
			return nil
		})
	})
	b.Run("bulk", func(b *testing.B) {
		requests := make([]tasking.Request, 1000)
		for i := range requests {
			requests[i] = request
		}
		measure(b, func(c *tasking.Client) error {
			for left := b.N; left > 0; left -= len(requests) {
				if _, err := c.DispatchMany(b.Context(), requests[:min(left, len(requests))]); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func measure(b *testing.B, run func(*tasking.Client) error) {
	d := dbtest.New(b)
	// Without the tracer of the tests' pool.
	p, err := pool.Open(b.Context(), d.URL, pool.Config{MaxConns: 16})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	registry, err := tasking.NewRegistry(tasking.NewType[map[string]int, string]("test.empty", nil, tasking.TypeConfig{}))
	if err != nil {
		b.Fatal(err)
	}
	c, err := tasking.New(p, tasking.Config{Registry: registry})
	if err != nil {
		b.Fatal(err)
	}
	dbtest.Measure(b, func() error { return run(c) })
	var n int
	if err := d.Direct.QueryRow(b.Context(), "SELECT count(*) FROM task").Scan(&n); err != nil {
		b.Fatal(err)
	}
	if n != b.N {
		b.Errorf("%d of %d tasks are there", n, b.N)
	}
}
