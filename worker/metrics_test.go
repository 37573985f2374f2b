package worker

import (
	"testing"

	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/tasking"
)

// measured are the gauges as a reader finds them.
func measured(t *testing.T, reader sdk.Reader) (queue []metricdata.DataPoint[int64], longest []metricdata.DataPoint[float64]) {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch data := m.Data.(type) {
			case metricdata.Gauge[int64]:
				queue = data.DataPoints
			case metricdata.Gauge[float64]:
				longest = data.DataPoints
			}
		}
	}
	return queue, longest
}

func TestGaugesTellOfTasksThatWaitForAWorkerAlone(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	c := newClient(t, d.Pool, d, echo)
	reader := sdk.NewManualReader()
	g, err := newGauges(sdk.NewMeterProvider(sdk.WithReader(reader)).Meter("test"))
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, tasks int64, atLeast, below float64) {
		t.Helper()
		if err := g.record(t.Context(), d.Pool); err != nil {
			t.Fatal(err)
		}
		queue, longest := measured(t, reader)
		if len(queue) != 1 || len(longest) != 1 || queue[0].Value != tasks || longest[0].Value < atLeast || longest[0].Value >= below {
			t.Errorf("%s: %v tasks, longest %v; want %d tasks, %v to %v s", what, queue, longest, tasks, atLeast, below)
		}
	}
	check("nothing there", 0, 0, 1e-9)

	options := tasking.Options{Exclusive: []string{"one"}}
	age := func(id tasking.Dispatched, by string) {
		t.Helper()
		if _, err := d.Direct.Exec(t.Context(), "UPDATE task SET unblocked_at = now() - $2::text::interval WHERE id = $1", id.ID, by); err != nil {
			t.Fatal(err)
		}
	}
	first := dispatch(t, c, echo.Request(echoArgs{}, options))
	dispatch(t, c, echo.Request(echoArgs{}, options)) // blocked
	age(first, "-1 hour")                             // however long the test takes
	check("not long enough", 0, -3600, -1800)
	age(first, "5 seconds")
	age(dispatch(t, c, echo.Request(echoArgs{}, tasking.Options{})), "1 hour")
	check("two are waiting", 2, 3600, 7200)
}
