package api_test

import (
	"cmp"
	"net/http"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/pithworks/pith/api"
	"github.com/pithworks/pith/tasking"
)

func TestRequestsAreMeasuredByTheirRoutes(t *testing.T) {
	t.Parallel()
	reader := sdk.NewManualReader()
	h := newHarness(t, func(cfg *api.Config) {
		cfg.Meter, cfg.NameTemplate = sdk.NewMeterProvider(sdk.WithReader(reader)).Meter("test"), "api-1@test"
	})
	id, _ := h.dispatch("sleep", map[string]any{"interval": 0}, tasking.Options{})
	for _, ask := range []struct {
		method, path string
		status       int
	}{
		{http.MethodGet, "tasks/", http.StatusOK},
		{http.MethodGet, "tasks/?state=waiting", http.StatusOK},
		{http.MethodHead, "status/", http.StatusOK},
		{http.MethodGet, "tasks/" + id.String() + "/", http.StatusOK},
		{http.MethodGet, "tasks/?nonsense=1", http.StatusBadRequest},
		{http.MethodGet, "tasks", http.StatusMovedPermanently},
		{http.MethodGet, "no/such/path/", http.StatusNotFound},
		{"LIST", "tasks/", http.StatusMethodNotAllowed},
	} {
		h.want(request{method: ask.method, path: ask.path}, ask.status, nil)
	}
	h.http.Close() // an answer may come before it is measured
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	m := all.ScopeMetrics[0].Metrics[0]
	data, ok := m.Data.(metricdata.Histogram[float64])
	if m.Name != "api.request_duration" || m.Unit != "ms" || !ok {
		t.Fatalf("measured %+v", m)
	}
	got := map[string]uint64{}
	for _, p := range data.DataPoints {
		if p.Sum <= 0 || p.Sum > 60_000 {
			t.Errorf("took %v ms in all", p.Sum)
		}
		var words []string
		for _, a := range p.Attributes.ToSlice() { // by name
			words = append(words, cmp.Or(a.Value.AsString(), "-"))
		}
		got[strings.Join(words, " ")] = p.Count
	}
	want := map[string]uint64{
		"GET 2xx /pulp/api/v3/tasks/ api-1@test":           2,
		"HEAD 2xx /pulp/api/v3/status/ api-1@test":         1,
		"GET 2xx /pulp/api/v3/tasks/{task_pk}/ api-1@test": 1,
		"GET 4xx /pulp/api/v3/tasks/ api-1@test":           1,
		"GET 3xx - api-1@test":                             1,
		"GET 4xx - api-1@test":                             1,
		"_OTHER 4xx - api-1@test":                          1,
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
